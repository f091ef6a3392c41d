"""Nodes that enrol and renew in the middle of faults, as edges do, and what they were given."""

import asyncio
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from chaos.ending import asked
from chaos.history import CertificateHeld, CertificateListed, TokenListed
from cloudhub.v1 import enrolment_pb2 as pb
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentAdminStub
from demo.hub import Hub
from demo.pages import pages
from edge.agent import EdgeFleet
from edge.enrolment import Enroller, EnrolmentFault, read_join_token
from edge.node_files import NodeFiles
from edge.settings import EdgeSettings

USES = 2
"""Of each token; more nodes than that show it at once."""
NODES = 3
TOKEN_SECONDS = 3600.0
HEAD_START_SECONDS = 0.1
"""At most, before the fault: it comes while they are somewhere between the first byte and the last."""
RETRY_SECONDS = 0.3
ASK_SECONDS = 5.0
LINKS_AT_ONCE = 8
CONNECT_SECONDS = 20.0
_USED_UP = "used as often as it may be"


class Applicants:
    """`rush` begins some; their tasks belong to the group that it is given. `held` is what they have. Whoever
    makes it closes it."""

    def __init__(self, hub: Hub, authority: Path, folder: Path, seed: int) -> None:
        self._hub = hub
        self._folder = folder
        self._chance = random.Random(seed)
        # Their requests block; each has a thread, so that they meet.
        self._threads = ThreadPoolExecutor(2 * NODES, "applicant")
        (self._server,) = hub.enrolment_servers
        self._enroller = Enroller(self._server, folder)
        self._rushes = 0
        self._at_work: set[asyncio.Task[None]] = set()
        self._newest: list[str] = []
        self.held: list[CertificateHeld] = []
        self.unclean: list[str] = []
        """A sentence for each one that was refused though it should not have been."""
        folder.mkdir(parents=True)
        # Of all of them, and not to be written by several at once.
        shutil.copy(authority, folder / "ca.crt")

    async def make_token(self, pattern: str, uses: int) -> tuple[str, str]:
        """A new token and its id; its uses are looked at in the end."""
        request = pb.CreateTokenRequest(node_pattern=pattern, uses=uses, valid_seconds=TOKEN_SECONDS)

        async def ask(channel: grpc.aio.Channel) -> tuple[str, str]:
            stub: Any = EnrolmentAdminStub(channel)
            answer = await stub.CreateToken(request, timeout=ASK_SECONDS)
            return answer.join_token, answer.token.token_id

        return await asked(self._hub.sessions[0], ask)

    async def rush(self, group: asyncio.TaskGroup) -> None:
        """Has some nodes show one token, and those that came in by the last one renew; returns meanwhile."""
        self._rushes += 1
        try:
            token, token_id = await self.make_token(f"applicant-{self._rushes}-*", USES)
        except grpc.aio.AioRpcError as error:
            self.unclean.append(f"no token could be made: {error.details()}")
            return
        joined, renewing = read_join_token(token), self._newest
        self._newest = []
        for number in range(NODES):
            node_id = f"applicant-{self._rushes}-{number + 1}"
            self._begin(group, node_id, token_id, partial(self._enroller.enrol, node_id, joined))
        for node_id in renewing:
            self._begin(group, node_id, "", partial(self._enroller.renew, node_id))
        await asyncio.sleep(self._chance.uniform(0.0, HEAD_START_SECONDS))

    def _begin(
        self, group: asyncio.TaskGroup, node_id: str, token_id: str, ask: Callable[[], x509.Certificate]
    ) -> None:
        task = group.create_task(self._ask(node_id, token_id, ask), name=f"enrolment of {node_id}")
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _ask(self, node_id: str, token_id: str, ask: Callable[[], x509.Certificate]) -> None:
        """Asks until there is an answer, as the agent does."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                certificate = await loop.run_in_executor(self._threads, ask)
            except EnrolmentFault as fault:
                if fault.passing:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if _USED_UP not in str(fault) or not token_id:
                    self.unclean.append(f"{node_id} got no certificate: {fault}")
                return
            self.held.append(CertificateHeld(node_id, f"{certificate.serial_number:x}", token_id))
            if token_id:
                self._newest.append(node_id)
            return

    async def answered(self, seconds: float) -> None:
        """Returns when each has its answer; those that have none within so long are a breach."""
        if self._at_work:
            _, waiting = await asyncio.wait(self._at_work, timeout=seconds)
            for task in waiting:
                self.unclean.append(f"{task.get_name()} was not answered within {seconds:g} s")
                task.cancel()

    def close(self) -> None:
        """Ends its threads, when they have ended what they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def connected(self) -> list[str]:
        """Those that get a link by their certificates, when there is room for them."""
        node_ids = sorted({one.node_id for one in self.held})
        settings = EdgeSettings(
            server=self._hub.server,
            ca=self._folder / "ca.crt",
            certificates=self._folder,
            database=self._folder / "edges.db",
            sync="normal",
            first_delay_seconds=0.1,
            most_delay_seconds=1.0,
        )
        found: list[str] = []
        for start in range(0, len(node_ids), LINKS_AT_ONCE):
            some = node_ids[start : start + LINKS_AT_ONCE]
            async with EdgeFleet(settings, some) as fleet:
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await fleet.connected()
                except TimeoutError:
                    pass  # the checker will say which
                found += [agent.node_id for agent in fleet if agent.counters.links_opened]
        return found

    async def listed(self) -> tuple[list[TokenListed], list[CertificateListed]]:
        """What the hub has on record."""

        return await asked(self._hub.sessions[0], _tokens), await asked(self._hub.sessions[0], _certificates)


async def _tokens(channel: grpc.aio.Channel) -> list[TokenListed]:
    stub: Any = EnrolmentAdminStub(channel)
    listed = pages(stub.ListTokens, pb.ListTokensRequest(), ASK_SECONDS)
    return [
        TokenListed(one.token_id, one.uses, one.uses_left) async for answer in listed for one in answer.tokens
    ]


async def _certificates(channel: grpc.aio.Channel) -> list[CertificateListed]:
    stub: Any = EnrolmentAdminStub(channel)
    listed = pages(stub.ListCertificates, pb.ListCertificatesRequest(), ASK_SECONDS)
    return [
        CertificateListed(one.node_id, one.serial, one.token_id)
        async for answer in listed
        for one in answer.certificates
    ]


def certificates_of(folder: Path, node_ids: list[str], token_id: str) -> list[CertificateHeld]:
    """What nodes have in their folder that enrolled by a token. Blocking."""
    found = []
    for node_id in node_ids:
        certificate = NodeFiles(folder, node_id).settle()
        if certificate is not None:
            found.append(CertificateHeld(node_id, f"{certificate.serial_number:x}", token_id))
    return found
