"""Invariant 9: what became of messages is told in every place where it has to be."""

import sqlite3
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from chaos.history import Outcome, Publish
from services.dispatcher.outbox.records import EventKind

ANSWER_SECONDS = 10.0
_PREFIX = "cloudhub_dispatcher_"
# What the rules of versions and quotas turn down is a row of the history; a request that is malformed is none
# of any node.
_RULES = ("BELOW_FLOOR", "ACKNOWLEDGED", "DELETED", "MESSAGE_ID_REUSED", "UNKNOWN_NODE")
_QUOTAS = ("NODE_QUOTA_ROWS", "NODE_QUOTA_BYTES", "TOTAL_QUOTA_ROWS", "TOTAL_QUOTA_BYTES")
Sample = tuple[str, str, str]
"""Name without prefix, outcome, reason."""


def dispatcher_counters(address: str) -> dict[Sample, float]:
    """What a dispatcher has counted. Blocking."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=ANSWER_SECONDS) as answer:
        text = answer.read().decode()
    return {
        (
            sample.name.removeprefix(_PREFIX),
            sample.labels.get("outcome", ""),
            sample.labels.get("reason", ""),
        ): sample.value
        for family in text_string_to_metric_families(text)
        if family.name.startswith(_PREFIX)
        for sample in family.samples
        if set(sample.labels) <= {"outcome", "reason"}
    }


class Told:
    """The history that a dispatcher wrote. Blocking."""

    def __init__(self, database: Path) -> None:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                "SELECT kind, reason, sum(1 + repeats) FROM delivery_event GROUP BY kind, reason"
            ).fetchall()
            dropped = connection.execute(
                "SELECT node_id, message_id FROM delivery_event WHERE kind = ?", (int(EventKind.DROPPED),)
            )
            self.dropped: set[tuple[str, str]] = set(dropped)
        finally:
            connection.close()
        self.events: Counter[tuple[EventKind, str]] = Counter()
        for kind, reason, count in rows:
            self.events[EventKind(kind), reason] += count


def untold(
    counters: Mapping[Sample, float],
    events: Mapping[tuple[EventKind, str], int],
    publishes: Iterable[Publish],
) -> list[str]:
    """Every refusal, drop, park and expiry is counted with its reason, and a row of the history. Pure."""

    def counted(name: str, reason: str = "", outcome: str = "") -> int:
        return int(
            sum(
                value
                for (its_name, its_outcome, its_reason), value in counters.items()
                if its_name == name
                and (not reason or reason == its_reason)
                and (not outcome or outcome == its_outcome)
            )
        )

    def written(kind: EventKind, reason: str = "") -> int:
        return sum(
            count
            for (its_kind, its_reason), count in events.items()
            if its_kind is kind and (not reason or reason == its_reason)
        )

    pairs = [("parked", counted("parked_total"), written(EventKind.PARKED))]
    pairs.append(("expired", counted("ended_total", "expired"), written(EventKind.ENDED, "expired")))
    dropped = {reason for name, _, reason in counters if name == "dropped_total"} | {
        reason for kind, reason in events if kind is EventKind.DROPPED
    }
    pairs += [
        (f"dropped, {reason}", counted("dropped_total", reason), written(EventKind.DROPPED, reason))
        for reason in sorted(dropped)
    ]
    pairs += [
        (
            f"refused, {reason}",
            counted("published_total", reason.lower()),
            written(EventKind.REJECTED, reason),
        )
        for reason in (*_RULES, *_QUOTAS)
    ]
    found = [
        f"{what}: {count} counted, {rows} rows of the history" for what, count, rows in pairs if count != rows
    ]
    for outcome in (Outcome.STALE, Outcome.REJECTED):
        seen = sum(one.outcome is outcome for one in publishes)
        count = counted("published_total", outcome=outcome.value)
        if seen > count:
            found.append(f"{outcome}: publishers were told {seen}, {count} counted")
    return found
