"""What must be true of join tokens and certificates after a run. Pure."""

from chaos.history import CertificateHeld, CertificateListed, TokenListed


def wrongly_used(
    tokens: list[TokenListed], listed: list[CertificateListed], held: list[CertificateHeld]
) -> list[str]:
    """A token lets in as many nodes as it has uses; and since nodes ask until they are answered, none of its
    uses goes to nobody."""
    found = []
    for token in tokens:
        holders = {one.node_id for one in held if one.token_id == token.token_id}
        let_in = holders | {one.node_id for one in listed if one.token_id == token.token_id}
        used = token.uses - token.uses_left
        if len(let_in) > token.uses:
            found.append(
                f"token {token.token_id} of {token.uses} uses let in {len(let_in)} nodes: "
                f"{', '.join(sorted(let_in))}"
            )
        elif len(holders) != used:
            found.append(
                f"token {token.token_id} was used {used} times, as the hub counts; "
                f"{len(holders)} nodes have a certificate by it"
            )
    return found


def unlisted(listed: list[CertificateListed], held: list[CertificateHeld]) -> list[str]:
    """Every certificate that an edge has is on record, so that it can be revoked."""
    known = {(one.node_id, one.serial) for one in listed}
    return [
        f"{one.node_id} has certificate {one.serial}, which is not on record"
        for one in held
        if (one.node_id, one.serial) not in known
    ]


def never_connected(held: list[CertificateHeld], connected: list[str]) -> list[str]:
    """Whoever has a certificate gets a link with it."""
    there = set(connected)
    return [
        f"{node_id} enrolled and got no link"
        for node_id in sorted({one.node_id for one in held})
        if node_id not in there
    ]
