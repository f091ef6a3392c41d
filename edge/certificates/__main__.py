"""`python -m edge.certificates`: a CA, and what it signs, as files in a folder."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from edge.certificates import (
    CertificateFault,
    KeyPair,
    create_authority,
    create_node_certificates,
    create_program_certificate,
    create_server_certificate,
    create_service_certificate,
)
from edge.certificates.bridge import create_bridge

cli = typer.Typer(
    help="Certificates of one hub: a CA, the server's, the services', one per edge node and program.",
    no_args_is_help=True,
)


def _tell(pairs: Iterable[KeyPair]) -> None:
    for pair in pairs:
        expires = f"{pair.certificate.not_valid_after_utc:%Y-%m-%d}"
        print(f"{'made' if pair.created else 'kept'} {pair.certificate_path} (until {expires})")


@cli.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    server_name: Annotated[
        list[str] | None, typer.Option(help="host name or IP address of the hub; repeat for several")
    ] = None,
) -> None:
    """Makes the CA, the certificate of edge links and that of the services."""
    names = server_name or ()
    _tell(
        [
            create_authority(folder),
            create_server_certificate(folder, names),
            create_service_certificate(folder, names),
        ]
    )


@cli.command()
def program(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    role: Annotated[list[str], typer.Option(help="publisher, operator or service; repeat for several")],
) -> None:
    """Makes the certificate of a program, or of a person, that calls the hub by gRPC."""
    _tell([create_program_certificate(folder, name, role)])


@cli.command()
def node(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    node_ids: Annotated[list[str] | None, typer.Argument(metavar="NODE...")] = None,
    count: Annotated[int, typer.Option(min=0, max=100_000, help="also PREFIX1 to PREFIXn")] = 0,
    prefix: Annotated[str, typer.Option(help="start of the ids that --count makes")] = "edge-",
) -> None:
    """Makes client certificates of edge nodes."""
    wanted = [*(node_ids or ()), *(f"{prefix}{number}" for number in range(1, count + 1))]
    if not wanted:
        raise CertificateFault("no node named: give node ids or --count")
    _tell(create_node_certificates(folder, wanted))


@cli.command()
def bridge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="of the new CA, which is made if need be")],
    old: Annotated[Path, typer.Argument(metavar="OLD_DIR", help="of the CA that edges have now")],
    server_name: Annotated[
        list[str] | None, typer.Option(help="host name or IP address of the hub; repeat for several")
    ] = None,
) -> None:
    """Makes a certificate of edge links that edges of the old CA accept as well as those of the new one."""
    made = create_bridge(folder, old, server_name or ())
    _tell([made.server])
    vouches = (
        "the old CA vouches for the new one" if made.signed_by_old else "the new CA vouches for the old one"
    )
    print(f"edges of both CAs accept {made.chain_path} until {made.until:%Y-%m-%d}: {vouches}")


def main() -> None:
    """Entry point: exits with status 1 and one sentence when a certificate cannot be made."""
    try:
        cli()
    except CertificateFault as fault:
        print(f"edge.certificates: {fault}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        print(f"edge.certificates: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
