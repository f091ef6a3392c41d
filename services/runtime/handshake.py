"""Why a server takes no connection: gRPC's channels say "Socket closed" of whatever TLS refuses.

gRPC's servers close such connections without the alert that would name the reason (RFC 8446, section 6.2), so
it is looked for in the certificate that was shown.
"""

import asyncio
import datetime
import ssl

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.runtime.settings import split_address
from services.runtime.tls_files import TlsFiles

_PROBE_SECONDS = 3.0


async def refusal(address: str, server_name: str, files: TlsFiles) -> str:
    """Shakes hands with HOST:PORT as a channel would; what is wrong, for people, or "" if nothing is."""
    host, port = split_address(address)
    try:
        context = ssl.create_default_context(cafile=str(files.authority))
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(files.certificate, files.private_key)
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=server_name
            )
            try:
                # A server of HTTP/2 speaks first, once it has accepted the client's certificate.
                accepted = await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not taken here: {error.verify_message}"
    except ConnectionResetError:
        accepted = b""
    except ssl.SSLError as error:
        return f"the handshake failed: {(error.reason or 'unknown').lower().replace('_', ' ')}"
    except TimeoutError:
        return f"no handshake within {_PROBE_SECONDS:g} s"
    except OSError as error:
        return f"no connection: {error.strerror or error}"
    return "" if accepted else f"it refuses this certificate: {suspicion(files)}"


def suspicion(files: TlsFiles) -> str:
    """What a server most likely has against the certificate."""
    try:
        chain = x509.load_pem_x509_certificates(files.certificate.read_bytes())
        authorities = x509.load_pem_x509_certificates(files.authority.read_bytes())
    except (OSError, ValueError) as error:
        return f"its files cannot be read: {error}"
    own, now = chain[0], datetime.datetime.now(datetime.UTC)
    if own.not_valid_after_utc <= now:
        return f"{files.certificate} expired on {own.not_valid_after_utc:%Y-%m-%d}"
    if own.not_valid_before_utc > now:
        return f"{files.certificate} is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    try:
        usage = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            return f"{files.certificate} is not for clients (its extended key usage lacks clientAuth)"
    if chain[-1].issuer not in {one.subject for one in authorities}:
        return f"{files.certificate} was not issued by the CA in {files.authority}"
    return f"it does not trust the CA {own.issuer.rfc4514_string()} that issued {files.certificate}"
