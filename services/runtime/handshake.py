"""Why no connection to a server comes about: gRPC's channels say too little of what is wrong with TLS.

What a server has against the client's certificate, it says itself, as the status of a call.
"""

import asyncio
import ssl

from services.runtime.settings import split_address
from services.runtime.tls_files import TlsFiles

_PROBE_SECONDS = 3.0


async def obstacle(address: str, server_name: str, files: TlsFiles) -> str:
    """Shakes hands with HOST:PORT as a channel would; what is wrong, for people, or "" if nothing is."""
    host, port = split_address(address)
    try:
        context = ssl.create_default_context(cafile=str(files.authority))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(files.certificate, files.private_key)
        async with asyncio.timeout(_PROBE_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=server_name)
            writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not taken here: {error.verify_message}"
    except ssl.SSLError as error:
        return f"the handshake failed: {(error.reason or 'unknown').lower().replace('_', ' ')}"
    except TimeoutError:
        return f"no handshake within {_PROBE_SECONDS:g} s"
    except OSError as error:
        return f"no connection: {error.strerror or error}"
    return ""
