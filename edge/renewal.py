"""Keeps certificates of nodes good: enrols those that have none, renews the others in time."""

import asyncio
import datetime
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from cryptography import x509

from edge.enrolment import Enroller, EnrolmentFault, JoinToken
from edge.node_files import NodeFiles, StoredFault
from edge.reconnect import LinkEnd, Reconnect

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

_RENEWED_AT_SHARE = 2 / 3
_RETRIES_LEFT = 10
_SHORTEST_SECONDS = 1.0
# The wall clock may step, and a machine may sleep: no wait is longer.
_LONGEST_SECONDS = 3600.0
_FIRST_DELAY_SECONDS, _MOST_DELAY_SECONDS = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate is good, in seconds since the epoch. Pure."""

    begins_at: float
    ends_at: float

    def renewal_in(self, now: float) -> float:
        """Seconds until it is to be renewed: after two thirds of its time."""
        return self.begins_at + (self.ends_at - self.begins_at) * _RENEWED_AT_SHARE - now

    def retry_in(self, now: float) -> float:
        """Seconds until the next attempt: several fit into the time that is left."""
        left = (self.ends_at - now) / _RETRIES_LEFT
        return min(max(left, _SHORTEST_SECONDS), _LONGEST_SECONDS)


def validity_of(certificate: x509.Certificate) -> Validity:
    """Of a certificate."""
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


class Renewals:
    """Of the nodes of one process. `token` is needed by those without a certificate that is good."""

    def __init__(self, enroller: Enroller, files: Sequence[NodeFiles], token: JoinToken | None) -> None:
        self._enroller = enroller
        self._files = files
        self._token = token
        self._present: dict[str, Validity] = {}

    async def enrol(self) -> None:
        """Returns when every node has a certificate that is good. What may pass is tried again; raises
        EnrolmentFault for a refusal, StoredFault for files."""
        for files in self._files:
            found = await asyncio.to_thread(files.settle)
            if found is None or validity_of(found).ends_at <= _now():
                if self._token is None:
                    what = "has expired" if found else "does not exist"
                    raise EnrolmentFault(f"{files.certificate} {what}: give a join token")
                found = await self._enrol(files.node_id, self._token)
            self._present[files.node_id] = validity_of(found)

    async def _enrol(self, node_id: str, token: JoinToken) -> x509.Certificate:
        delays = Reconnect(_FIRST_DELAY_SECONDS, _MOST_DELAY_SECONDS)
        while True:
            try:
                certificate = await asyncio.to_thread(self._enroller.enrol, node_id, token)
            except EnrolmentFault as fault:
                if not fault.passing:
                    raise
                end = LinkEnd("failed", retry_after_seconds=fault.retry_after_seconds)
                delay = delays.delay(end, random.random())
                log.warning(
                    "enrolment.failed", node=node_id, detail=str(fault), again_in_seconds=round(delay, 1)
                )
                await asyncio.sleep(delay)
            else:
                log.info("node.enrolled", node=node_id, until=f"{certificate.not_valid_after_utc:%F %T}")
                return certificate

    async def run(self, renewed: Callable[[str], None]) -> None:
        """Renews until cancelled; `renewed` is told each node whose files are new."""
        due = {node_id: validity.renewal_in(0.0) for node_id, validity in self._present.items()}
        while True:
            node_id = min(due, key=due.__getitem__)
            wait = due[node_id] - _now()
            if wait > 0:
                await asyncio.sleep(min(wait, _LONGEST_SECONDS))
                continue
            due[node_id] = await self._renew(node_id, renewed)

    async def _renew(self, node_id: str, renewed: Callable[[str], None]) -> float:
        """When the node is due next."""
        try:
            certificate = await asyncio.to_thread(self._enroller.renew, node_id)
        except (EnrolmentFault, StoredFault) as fault:
            delay = self._present[node_id].retry_in(_now()) * (0.75 + 0.5 * random.random())
            log.warning("renewal.failed", node=node_id, detail=str(fault), again_in_seconds=round(delay, 1))
            return _now() + delay
        self._present[node_id] = validity_of(certificate)
        log.info("certificate.renewed", node=node_id, until=f"{certificate.not_valid_after_utc:%F %T}")
        renewed(node_id)
        # One that the CA's end cuts short may be due again at once.
        now = _now()
        return now + max(self._present[node_id].renewal_in(now), self._present[node_id].retry_in(now))


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
