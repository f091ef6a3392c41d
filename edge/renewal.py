"""Keeps certificates of nodes good: enrols those that have none, renews the others in time, and enrols those
again whose certificate the hub does not take any more."""

import asyncio
import datetime
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
# Of a node that is refused as it is: only an operator can change that.
_FIRST_REFUSAL_SECONDS, _MOST_REFUSAL_SECONDS = 30.0, 3600.0


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

    def rest_of_new(self, now: float) -> float:
        """Seconds in which one that has just come is not to be renewed, whatever the clock says."""
        if now < self.ends_at:
            # One that the CA's end cuts short may be due again at once.
            return self.retry_in(now)
        # It has expired only by this clock, which is ahead of the hub's.
        return (self.ends_at - self.begins_at) * _RENEWED_AT_SHARE


def validity_of(certificate: x509.Certificate) -> Validity:
    """Of a certificate."""
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def _failures() -> Reconnect:
    return Reconnect(_FIRST_DELAY_SECONDS, _MOST_DELAY_SECONDS)


def _refusals() -> Reconnect:
    return Reconnect(_FIRST_REFUSAL_SECONDS, _MOST_REFUSAL_SECONDS)


@dataclass(slots=True)
class Schedule:
    """When one node asks for its next certificate. Pure: `now` is seconds since the epoch by a clock that may
    step, `uptime` seconds on one that does not."""

    validity: Validity
    refused: bool = False
    """The hub did not take the present certificate."""
    _not_before: float = 0.0
    _has_time: bool = False
    _failures: Reconnect = field(default_factory=_failures)
    _refusals: Reconnect = field(default_factory=_refusals)

    def refuse(self) -> None:
        """The hub did not take the present certificate. What was put off because there was time is not
        any more; what was put off so as not to press the hub is."""
        self.refused = True
        if self._has_time:
            self._has_time, self._not_before = False, 0.0

    def expired(self, now: float) -> bool:
        """Whether the present certificate is of no use any more."""
        return self.validity.ends_at <= now

    def wait(self, now: float, uptime: float) -> float:
        """Seconds until the node is to ask; not above 0 if it is to ask now."""
        due_in = 0.0 if self.refused else self.validity.renewal_in(now)
        return max(due_in, self._not_before - uptime)

    def renewed(self, validity: Validity, now: float, uptime: float) -> None:
        """The next certificate has come."""
        self.validity, self.refused = validity, False
        self._not_before, self._has_time = uptime + validity.rest_of_new(now), False
        self._failures, self._refusals = _failures(), _refusals()

    def failed(
        self, now: float, uptime: float, spread: float, *, unproven: bool, retry_after_seconds: float = 0.0
    ) -> float:
        """None has come; seconds until the next attempt. `spread` in [0, 1) places it in the jitter."""
        end = LinkEnd("failed", retry_after_seconds=retry_after_seconds)
        self._has_time = False
        if unproven:
            delay = self._refusals.delay(end, spread)
        elif self.refused or self.expired(now):
            delay = self._failures.delay(end, spread)
        else:
            delay = max(self.validity.retry_in(now) * (0.75 + 0.5 * spread), retry_after_seconds)
            self._has_time = retry_after_seconds <= 0
        self._not_before = uptime + delay
        return delay


class Renewals:
    """Of the nodes of one process. `token` is needed by those without a certificate that is good."""

    def __init__(self, enroller: Enroller, files: Sequence[NodeFiles], token: JoinToken | None) -> None:
        self._enroller = enroller
        self._files = {one.node_id: one for one in files}
        self._token = token
        self._schedules: dict[str, Schedule] = {}
        self._refused = asyncio.Event()

    async def enrol(self) -> None:
        """Returns when every node has a certificate that is good. What may pass is tried again; raises
        EnrolmentFault for a refusal, StoredFault for files."""
        for files in self._files.values():
            found = await asyncio.to_thread(files.settle)
            if found is None or validity_of(found).ends_at <= _now():
                if self._token is None:
                    what = "has expired" if found else "does not exist"
                    raise EnrolmentFault(f"{files.certificate} {what}: give a join token")
                found = await self._enrol(files.node_id, self._token)
            self._schedules[files.node_id] = Schedule(validity_of(found))

    async def _enrol(self, node_id: str, token: JoinToken) -> x509.Certificate:
        delays = _failures()
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
                _tell_enrolled(node_id, certificate)
                return certificate

    def refused(self, node_id: str) -> None:
        """The hub did not take the node's certificate, as its clock or its operator will have it: the node
        asks for the next one without waiting for its time."""
        self._schedules[node_id].refuse()
        self._refused.set()

    async def run(self, renewed: Callable[[str], None]) -> None:
        """Renews, or enrols again by token where the hub does not take the present certificate, until
        cancelled; `renewed` is told each node whose files are new."""
        loop = asyncio.get_running_loop()
        while True:
            self._refused.clear()
            now, uptime = _now(), loop.time()
            waits = {node_id: one.wait(now, uptime) for node_id, one in self._schedules.items()}
            node_id = min(waits, key=waits.__getitem__)
            if waits[node_id] <= 0:
                await self._ask(node_id, renewed)
                continue
            try:
                async with asyncio.timeout(min(waits[node_id], _LONGEST_SECONDS)):
                    await self._refused.wait()
            except TimeoutError:
                pass

    async def _ask(self, node_id: str, renewed: Callable[[str], None]) -> None:
        loop, schedule = asyncio.get_running_loop(), self._schedules[node_id]
        unproven, retry_after_seconds = False, 0.0
        try:
            certificate = await self._next(node_id, schedule)
        except (EnrolmentFault, StoredFault) as fault:
            if isinstance(fault, EnrolmentFault):
                unproven, retry_after_seconds = fault.unproven, fault.retry_after_seconds
            delay = schedule.failed(
                _now(),
                loop.time(),
                random.random(),
                unproven=unproven,
                retry_after_seconds=retry_after_seconds,
            )
            tell = log.error if unproven else log.warning
            event = "enrolment.refused" if unproven else "renewal.failed"
            tell(event, node=node_id, detail=str(fault), again_in_seconds=round(delay, 1))
            return
        schedule.renewed(validity_of(certificate), _now(), loop.time())
        renewed(node_id)

    async def _next(self, node_id: str, schedule: Schedule) -> x509.Certificate:
        """The next certificate. By the present one as long as the hub takes it: that needs no use of a token,
        and the clock that says it has expired may be wrong."""
        try:
            certificate = await asyncio.to_thread(self._enroller.renew, node_id)
        except EnrolmentFault as fault:
            expired = schedule.expired(_now())
            # The alert that says so may be lost with the connection.
            if not fault.unproven and not (expired and not fault.answered):
                raise
            if self._token is None:
                what = f"{self._files[node_id].certificate} has expired" if expired else str(fault)
                raise EnrolmentFault(f"{what}: give a join token", unproven=True) from fault
            if fault.unproven:
                log.warning("certificate.refused", node=node_id, detail=str(fault))
            certificate = await asyncio.to_thread(self._enroller.enrol, node_id, self._token)
            _tell_enrolled(node_id, certificate)
        else:
            log.info("certificate.renewed", node=node_id, until=f"{certificate.not_valid_after_utc:%F %T}")
        return certificate


def _tell_enrolled(node_id: str, certificate: x509.Certificate) -> None:
    log.info("node.enrolled", node=node_id, until=f"{certificate.not_valid_after_utc:%F %T}")


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()
