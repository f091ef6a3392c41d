"""Everything that is fuzzed, by name."""

from typing import Any

from fuzz.contents import contents, contents_checked, recorded_contents
from fuzz.datagrams import attacks, datagrams_checked
from fuzz.enrolment import enrolment_checked, enrolment_requests
from fuzz.frames import frame_texts, frames_checked, recorded_frames
from fuzz.links import conversations, conversations_checked
from fuzz.parties import parties_checked, plays
from fuzz.quic import recorded_streams, streams, streams_checked
from fuzz.requests import calls
from fuzz.rpc import requests_checked, requests_checked_on_postgresql
from fuzz.secrets_in_settings import secrets_checked, secrets_told
from fuzz.service_settings import files, files_checked, starts, starts_checked
from fuzz.target import Target

_ALL: tuple[Target[Any], ...] = (
    Target(
        "frames", "the codec of edge frames", frame_texts(), frames_checked, True, recorded_frames, 60_000
    ),
    Target("contents", "the check of contents", contents(), contents_checked, True, recorded_contents, 5_000),
    Target("quic", "streams of a QUIC link", streams(), streams_checked, True, recorded_streams, 35_000),
    Target("datagrams", "datagrams at a running QUIC listener", attacks(), datagrams_checked, weight=200),
    Target("settings", "flags and environment of every service", starts(), starts_checked, True, weight=50),
    Target(
        "secrets",
        "passwords in settings of every kind of wrong",
        secrets_told(),
        secrets_checked,
        True,
        weight=50,
    ),
    Target("files", "certificate, key and CA of a connector", files(), files_checked, weight=100),
    Target("enrolment", "HTTP requests to enrolment", enrolment_requests(), enrolment_checked, weight=200),
    Target(
        "links",
        "requests and frames at a running connector",
        conversations(),
        conversations_checked,
        weight=60,
    ),
    Target("parties", "hostile parties at a running hub", plays(), parties_checked, weight=2),
    Target("requests", "every gRPC method of a running hub", calls(), requests_checked, weight=200),
    Target(
        "requests-postgresql",
        "the same with PostgreSQL below",
        calls(),
        requests_checked_on_postgresql,
        weight=100,
    ),
)
TARGETS: dict[str, Target[Any]] = {target.name: target for target in _ALL}
