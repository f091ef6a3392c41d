"""Everything that is fuzzed, by name."""

from typing import Any

from fuzz.datagrams import attacks, datagrams_checked
from fuzz.enrolment import enrolment_checked, enrolment_requests
from fuzz.frames import frame_texts, frames_checked, recorded_frames
from fuzz.links import conversations, conversations_checked
from fuzz.quic import recorded_streams, streams, streams_checked
from fuzz.requests import calls
from fuzz.rpc import requests_checked, requests_checked_on_postgresql
from fuzz.secrets_in_settings import secrets_checked, secrets_told
from fuzz.service_settings import files, files_checked, starts, starts_checked
from fuzz.target import Target

_ALL: tuple[Target[Any], ...] = (
    Target("frames", "the codec of edge frames", frame_texts(), frames_checked, True, recorded_frames),
    Target("quic", "streams of a QUIC link", streams(), streams_checked, True, recorded_streams),
    Target("datagrams", "datagrams at a running QUIC listener", attacks(), datagrams_checked),
    Target("settings", "flags and environment of every service", starts(), starts_checked, True),
    Target("secrets", "passwords in settings of every kind of wrong", secrets_told(), secrets_checked, True),
    Target("files", "certificate, key and CA of a connector", files(), files_checked),
    Target("enrolment", "HTTP requests to enrolment", enrolment_requests(), enrolment_checked),
    Target("links", "requests and frames at a running connector", conversations(), conversations_checked),
    Target("requests", "every gRPC method of a running hub", calls(), requests_checked),
    Target(
        "requests-postgresql",
        "the same with PostgreSQL below",
        calls(),
        requests_checked_on_postgresql,
    ),
)
TARGETS: dict[str, Target[Any]] = {target.name: target for target in _ALL}
