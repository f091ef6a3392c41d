#!/bin/sh
# msgspec's JSON decoder skims over what it does not decode: a `Raw` value may hold bytes that are no UTF-8 and
# numbers that the same decoder refuses when it decodes them; and half a surrogate pair at the end of a string is
# reported as truncated input. Whoever carries `Raw` values on as JSON has to check them himself.
# Seen with msgspec 0.22.0 on Python 3.11: the four lines that are compared below.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0
"$folder/venv/bin/python" - >"$folder/seen" <<'EOF'
import msgspec

print("msgspec", msgspec.__version__)
for text in (b'"\xff"', b"1e400", b'"\\ud83d"'):
    seen = []
    for decoder in (msgspec.json.Decoder(msgspec.Raw), msgspec.json.Decoder()):
        try:
            decoder.decode(text)
            seen.append("taken")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            seen.append(f"{type(error).__name__}: {str(error)[:40]}")
    print(ascii(text), "as Raw:", seen[0], "| decoded:", seen[1])
EOF
cat "$folder/seen"
cat >"$folder/expected" <<'EOF'
msgspec 0.22.0
b'"\xff"' as Raw: taken | decoded: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in 
b'1e400' as Raw: taken | decoded: ValidationError: Number out of range
b'"\\ud83d"' as Raw: DecodeError: Input data was truncated | decoded: DecodeError: Input data was truncated
EOF
diff "$folder/expected" "$folder/seen"
