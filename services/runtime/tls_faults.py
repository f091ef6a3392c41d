"""Why TLS with a peer cannot go on, under names that are the same whichever library found out."""

import ssl

# X509_V_ERR_* of OpenSSL.
_VERIFY_REASONS = {
    # Signed by another one of that name, or not as it says.
    7: "certificate_untrusted",
    9: "certificate_not_yet_valid",
    10: "certificate_expired",
    18: "certificate_untrusted",
    19: "certificate_untrusted",
    20: "certificate_untrusted",
    21: "certificate_untrusted",
    # Signed by one that may not: no CA, or deeper than the CA above it allows.
    22: "certificate_untrusted",
    24: "certificate_untrusted",
    25: "certificate_untrusted",
    79: "certificate_untrusted",
    26: "certificate_purpose",
    66: "certificate_weak_key",
    67: "certificate_weak_key",
    68: "certificate_weak_key",
}
_TLS_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "certificate_missing",
    "HTTP_REQUEST": "not_tls",
    "HTTPS_PROXY_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNKNOWN_PROTOCOL": "not_tls",
    "UNSUPPORTED_PROTOCOL": "tls_version",
    "NO_SHARED_CIPHER": "tls_no_shared_cipher",
    "PACKET_LENGTH_TOO_LONG": "not_tls",
    "RECORD_LAYER_FAILURE": "not_tls",
    # OpenSSL takes 100 KiB of certificates, and keeps nothing of what says that it is more.
    "EXCESSIVE_MESSAGE_SIZE": "certificate_too_large",
}


class TlsFault(Exception):
    """The peer's TLS cannot go on. `reason` is the metric label, `detail` OpenSSL's words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def verify_fault(code: int, words: str) -> TlsFault:
    """Of a certificate that was not verified, by OpenSSL's number (X509_V_ERR_*)."""
    return TlsFault(_VERIFY_REASONS.get(code, "certificate_invalid"), words)


def protocol_fault(name: str) -> TlsFault:
    """Of a handshake or record, by OpenSSL's name for it, such as NO_SHARED_CIPHER."""
    reason = _TLS_REASONS.get(name, "peer_alert" if "ALERT" in name else "tls_protocol")
    return TlsFault(reason, name.lower().replace("_", " "))


def fault_of(error: ssl.SSLError) -> TlsFault:
    """Of an error of Python's `ssl`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return verify_fault(error.verify_code, error.verify_message)
    return protocol_fault(error.reason or "unknown")
