"""Links over QUIC: framing and messages (pure), the connection, its certificates, its listener."""
