"""Settings of a service: flags, then environment, then defaults; read once, in `app.py`."""

import ipaddress
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

from services.runtime.caller_shares import CallerLimits
from services.runtime.names import check_label
from services.runtime.release import release

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Seconds of it are still 64 bits of milliseconds.
_MOST_NUMBER = 10**15
_ADDRESS = re.compile(r"^(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:\s/?#@]+):(?P<port>\d{1,5})$")


def check_address(value: str) -> str:
    """`HOST:PORT` as it came. Raises ValueError."""
    match = _ADDRESS.match(value)
    if not match or int(match["port"]) > 65535:
        raise ValueError("should be HOST:PORT with a port from 0 to 65535, for example 127.0.0.1:50051")
    return value


Address = Annotated[str, AfterValidator(check_address)]


def _check_replicas(value: str) -> str:
    addresses = [check_address(part.strip()) for part in value.split(",")]
    if len(addresses) > 1:
        try:
            versions = {ipaddress.ip_address(split_address(address)[0]).version for address in addresses}
        except ValueError:
            raise ValueError(
                "several replicas should be IP:PORT,IP:PORT,... or one name that stands for all of them"
            ) from None
        if len(versions) > 1:
            raise ValueError("should be all IPv4 or all IPv6")
    return ",".join(addresses)


Replicas = Annotated[str, AfterValidator(_check_replicas)]
"""Where the replicas of one service are: HOST:PORT, where HOST may resolve to several, or IP:PORT,IP:PORT."""


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of a checked `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_name(value: str) -> str:
    fault = check_label(value)
    if fault:
        raise ValueError(fault)
    return value


class ServiceSettings(BaseSettings):
    """What every service has. Subclasses set `env_prefix`."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    name: Annotated[str, AfterValidator(_check_name)] = Field(
        "", description="name of this instance in logs, metrics and traces; empty: the host's name"
    )
    advertise: Address | None = Field(
        None,
        description="HOST:PORT under which its gRPC server is announced to operators and other services; "
        "none: the address it listens on, with an address of this machine if that is every address",
    )
    grpc_certificate: Path = Field(
        Path("certs/service.crt"),
        description="certificate that this service shows in gRPC, called and calling (PEM, with its chain)",
    )
    grpc_private_key: Path = Field(
        Path("certs/service.key"), description="the private key of that certificate (PEM)"
    )
    grpc_ca: Path = Field(
        Path("certs/ca.crt"), description="CA of all certificates that gRPC callers and services show (PEM)"
    )
    grpc_revoked: Path | None = Field(
        None,
        description="list of gRPC certificates that are not taken any more (lines `serial: HEX`, "
        "`name: SUBJECT`), read anew when it changes; none: there is no list",
    )
    grpc_insecure_loopback: bool = Field(
        False,
        description="true: gRPC without TLS and without roles; refused unless all its addresses are loopback",
    )
    max_grpc_connections: int = Field(
        2048,
        ge=1,
        description="gRPC connections with TLS of all callers but services; further ones are refused",
    )
    max_grpc_connections_per_caller: int = Field(
        256, ge=1, description="of these, those of one caller (a certificate's subject)"
    )
    max_grpc_calls_per_caller: int = Field(
        256,
        ge=1,
        description="calls and streams of one caller at a time, over all its connections",
    )
    max_grpc_request_bytes: int = Field(
        128 * 1024 * 1024,
        ge=4 * 1024 * 1024,
        description="requests of all callers but services that are not whole or not answered; one caller may "
        "have a third of what is free",
    )
    health_listen: Address | None = Field(
        None,
        description="HOST:PORT of a second gRPC server that answers health checks only, without TLS, for "
        "probes that have no certificate; none: health is asked of the gRPC server",
    )
    metrics_listen: Address = Field("0.0.0.0:9464", description="HOST:PORT of the Prometheus endpoint")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level logged")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, JSON elsewhere"
    )
    shutdown_seconds: float = Field(20.0, gt=0, le=600, description="time for a clean stop")

    @property
    def caller_limits(self) -> CallerLimits:
        """What each caller by gRPC may have under way."""
        return CallerLimits(
            self.max_grpc_connections,
            self.max_grpc_connections_per_caller,
            self.max_grpc_calls_per_caller,
            self.max_grpc_request_bytes,
        )

    @field_validator("*")
    @classmethod
    def _check_number(cls, value: object) -> object:
        """Infinite times and numbers beyond what clocks and columns hold would fail where they are used."""
        if isinstance(value, int | float) and not abs(value) <= _MOST_NUMBER:
            raise ValueError(f"should be at most {_MOST_NUMBER}")
        return value


S = TypeVar("S", bound=BaseSettings)

VERSION_FLAG = "--version"
_FLAG = re.compile(r"--[a-z]+(-[a-z]+)*")
# Of a value that has one of these, a part may be a password.
_URL_MARKS = ("@", "//")
_MOST_SHOWN_CHARS = 80


def load_settings(kind: type[S], program: str, argv: list[str] | None = None) -> S:
    """Reads settings from flags and environment; exits with status 2 and one sentence per fault, which shows
    nothing that may be a secret. `--version` tells the release instead, and exits with status 0."""
    kind.model_config["cli_prog_name"] = program
    arguments = sys.argv[1:] if argv is None else argv
    if VERSION_FLAG in arguments:
        print(f"{program} {release()}")
        raise SystemExit(0)
    strays = list(_strays(kind, arguments))
    for stray in strays:
        print(f"{program}: {stray}; --help lists the flags", file=sys.stderr)
    if strays:
        raise SystemExit(2)
    try:
        return CliApp.run(kind, cli_args=arguments)
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix", ""))
        for fault in error.errors():
            field = ".".join(str(part) for part in fault["loc"])
            if not field:
                # Of several settings together: the sentence names them, what they are may be secret.
                print(f"{program}: {fault['msg'].removeprefix('Value error, ')}", file=sys.stderr)
                continue
            flag, variable = "--" + field.replace("_", "-"), (prefix + field).upper()
            text = fault["msg"].removeprefix("Value error, ").partition("; got ")[0]
            print(f"{program}: {flag} (or {variable}): {text}{_got(kind, field, fault)}", file=sys.stderr)
        raise SystemExit(2) from None
    except SettingsError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _strays(kind: type[BaseSettings], arguments: Sequence[str]) -> Iterator[str]:
    """What is wrong with arguments that are no flag and no flag's value: argparse would repeat them, and one
    may be a password whose flag was mistyped, or a part of one."""
    flags = {"--" + name.replace("_", "-") for name in kind.model_fields}
    at = 0
    while at < len(arguments):
        name, has_value, _ = arguments[at].partition("=")
        at += 1
        if name in flags:
            at += not has_value
        elif arguments[at - 1] not in ("--help", "-h"):
            told = name if _FLAG.fullmatch(name) else "it"
            yield f"argument {at}: {told} is no flag and no value of one"


def _got(kind: type[BaseSettings], field: str, fault: "ErrorDetails") -> str:
    """The faulty value, if it can be told."""
    if fault["type"] in ("missing", "extra_forbidden"):
        return ""
    setting = kind.model_fields.get(field)
    return got(str(fault["input"]), is_secret=setting is not None and not setting.repr)


def got(value: str, *, is_secret: bool = False) -> str:
    """The end of a sentence about a faulty value: what it is, if that can be told."""
    if is_secret or any(mark in value for mark in _URL_MARKS):
        return "; its value is not shown, since it may hold a password"
    return f"; got {value[:_MOST_SHOWN_CHARS]!r}"
