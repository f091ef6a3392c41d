"""Whether TLS failed because the hub does not take the node's certificate, and not for another reason."""

import ssl

# Alerts of TLS: bad, unsupported, revoked, expired and unknown certificate, unknown CA, no certificate.
_CERTIFICATE_ALERTS = frozenset({42, 43, 44, 45, 46, 48, 116})
# QUIC adds the alert to this (RFC 9001, 4.8).
_CRYPTO_ERROR = 0x100


def says_certificate_refused(error: BaseException | None) -> bool:
    """Of a TLS connection's failure: an alert of the peer is named so by OpenSSL."""
    # Errors that OpenSSL did not make have none.
    reason = getattr(error, "reason", None) or "" if isinstance(error, ssl.SSLError) else ""
    return "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)


def quic_certificate_refused(code: int) -> bool:
    """Of the error that a peer closed a QUIC connection with."""
    return code - _CRYPTO_ERROR in _CERTIFICATE_ALERTS
