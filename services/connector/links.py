"""All links of a connector: admission, the way from numbers to links, and their ends."""

from bisect import bisect_right
from collections.abc import Callable, Collection
from itertools import count
from typing import Protocol

from opentelemetry.trace import Span

from cloudhub.v1 import link_pb2
from services.connector.admission import HttpRefusal, Identity, check_identity
from services.connector.close_codes import reason_name
from services.connector.edge_link import EdgeLink, LinkStream, LinkTools
from services.connector.transport import EdgeTransport, LinkHandler, LinkRequest, TransportEnd
from services.runtime.clock import Clock
from services.runtime.line_budget import LineBudget
from services.runtime.logs import get_log
from services.runtime.tracing import ORIGIN_NS, fail, is_sampled, trace_id_of

_log = get_log("connector.links")
_Reason = link_pb2.CloseReason

_STATUS = {
    link_pb2.REFUSAL_REASON_NODE_LIMIT: (429, "node_limit", "a limit on nodes is reached"),
    link_pb2.REFUSAL_REASON_UNAVAILABLE: (503, "unavailable", "the hub cannot open a session now"),
    link_pb2.REFUSAL_REASON_FORBIDDEN: (403, "forbidden", "the node may not connect"),
}


class StreamChoice(Protocol):
    """Who knows the dispatchers."""

    def choose(self, node_id: str, declined: Collection[LinkStream] = ()) -> LinkStream | None:
        """The attached dispatcher for a node's new link, none of those that declined it; None if there is
        none."""
        ...

    def best(self, node_id: str) -> LinkStream | None:
        """The dispatcher that a node's link is to be at; None if no attached one is fit for it."""
        ...


class Requester(EdgeTransport, Protocol):
    """A transport whose request is being decided."""

    def start(self, handler: LinkHandler) -> None:
        """Who is told of the transport's end from here on."""
        ...


class Links:
    """Every link by its number, announced ones included. Numbers are never used twice."""

    def __init__(
        self,
        streams: StreamChoice,
        tools: LinkTools,
        clock: Clock,
        *,
        most_links: int,
        verdict_timeout: float,
        retry_after: float,
    ) -> None:
        self._streams = streams
        self._tools = tools
        self._clock = clock
        self._most_links = most_links
        self._verdict_timeout = verdict_timeout
        self._retry_after = retry_after
        self._links: dict[int, EdgeLink] = {}
        self._connect_spans: dict[int, Span] = {}
        # Of announced links: the dispatchers that would not take them.
        self._declined: dict[int, list[LinkStream]] = {}
        self._numbers = count(1)
        self._opened_lines, self._closed_lines = LineBudget(), LineBudget()
        self.accepting = True
        # Who is told of every end, with the reason and in words; the composition root sets it.
        self.on_over: Callable[[EdgeLink, link_pb2.CloseReason.ValueType, str], None] = lambda *_: None

    def __len__(self) -> int:
        return len(self._links)

    def get(self, number: int) -> EdgeLink | None:
        """A link that is announced or admitted."""
        return self._links.get(number)

    def admitted(self) -> list[EdgeLink]:
        """The admitted links, oldest first."""
        return [link for link in self._links.values() if link.state is not None]

    def page(self, after: tuple[str, int], prefix: str, size: int) -> list[EdgeLink]:
        """Up to `size` admitted links whose (node id, number) is above `after`, in that order."""
        found = [link for link in self.admitted() if link.identity.node_id.startswith(prefix)]
        found.sort(key=lambda link: (link.identity.node_id, link.number))
        start = bisect_right(found, after, key=lambda link: (link.identity.node_id, link.number))
        return found[start : start + size]

    # Admission.

    def requested(self, transport: Requester, request: LinkRequest) -> None:
        """A peer asks for a link: refused at once, or announced to the node's dispatcher."""
        identity = check_identity(request.certificate, request.path, request.headers)
        if isinstance(identity, HttpRefusal):
            self._turn_down(transport, identity)
            return
        if not self.accepting:
            self._refuse_unavailable(transport, "draining", "this connector is going away, try another")
            return
        if len(self._links) >= self._most_links:
            self._refuse_unavailable(
                transport, "connector_full", f"{self._most_links} links are open already"
            )
            return
        stream = self._streams.choose(identity.node_id)
        if stream is None:
            self._refuse_unavailable(transport, "no_dispatcher", "no dispatcher is attached")
            return
        self._announce(transport, identity, stream)

    def _refuse_unavailable(self, transport: Requester, reason: str, text: str) -> None:
        self._turn_down(transport, HttpRefusal(503, reason, text, self._retry_after))

    def _turn_down(self, transport: Requester, refusal: HttpRefusal) -> None:
        """Refuses a request that nobody was asked about. What it said of its node is not believed."""
        self._tools.tracing.record(
            "connect",
            "",
            attributes={
                "cloudhub.outcome": refusal.reason,
                "http.response.status_code": refusal.status,
                "network.peer.address": transport.peer_address,
                "network.protocol.name": transport.kind,
            },
            error=refusal.text,
        )
        transport.refuse(refusal)

    def _announce(self, transport: Requester, identity: Identity, stream: LinkStream) -> None:
        number = next(self._numbers)
        tracing, about = self._tools.tracing, {"cloudhub.node.id": identity.node_id}
        # All of the link stands below a moment: its end is long after its request.
        traceparent = tracing.record("link", "", attributes=about, lasts_ns=ORIGIN_NS)
        span = tracing.start(
            "connect",
            traceparent,
            attributes={
                **about,
                "cloudhub.project.id": identity.project_id,
                "network.peer.address": transport.peer_address,
                "network.protocol.name": transport.kind,
            },
        )
        link = EdgeLink(number, identity, transport, stream, self, self._tools, traceparent)
        self._links[number] = link
        self._connect_spans[number] = span
        transport.start(link)
        link.verdict_timer = self._tools.loop.call_later(self._verdict_timeout, self._verdict_late, link)
        stream.outgoing.announce(link.announcement())

    def verdict(self, stream: LinkStream, verdict: link_pb2.LinkVerdict) -> None:
        """The dispatcher's answer to an announcement."""
        link = self._links.get(verdict.link)
        if link is None or link.stream is not stream or link.state is not None:
            self._tools.metrics.dropped.labels("verdict", "link_gone").inc()
            if verdict.epoch and link is None:
                # The peer vanished meanwhile: the session must not stay.
                stream.outgoing.end(
                    verdict.link,
                    verdict.epoch,
                    _Reason.CLOSE_REASON_TRANSPORT_ERROR,
                    "the link was gone before its verdict came",
                )
            return
        if not verdict.epoch and verdict.refusal.nothing_asked:
            self._declined.setdefault(link.number, []).append(stream)
            if self._announce_elsewhere(link, "declined"):
                return
        if link.verdict_timer:
            link.verdict_timer.cancel()
            link.verdict_timer = None
        if verdict.epoch:
            self._admit(link, verdict.epoch)
        else:
            self._refuse(link, verdict.refusal)

    def _admit(self, link: EdgeLink, epoch: int) -> None:
        link.opened_at_ms = self._clock.wall_ms()
        metrics = self._tools.metrics
        metrics.links_opened.labels(link.transport.kind).inc()
        metrics.links.inc()
        self._end_connect_span(link, epoch)
        told = self._opened_lines.take(link.identity.node_id, self._clock.monotonic())
        if told is not None:
            _log.info(
                "link.opened",
                node=link.identity.node_id,
                epoch=epoch,
                link=link.number,
                peer=link.transport.peer_address,
                transport=link.transport.kind,
                dispatcher=link.stream.address if link.stream else "",
                trace_id=trace_id_of(link.traceparent),
                **told,
            )
        link.admit(epoch)

    def _refuse(self, link: EdgeLink, refusal: link_pb2.Refusal) -> None:
        status, reason, text = _STATUS.get(refusal.reason, _STATUS[link_pb2.REFUSAL_REASON_UNAVAILABLE])
        retry_after = refusal.retry_after_seconds or (self._retry_after if status != 403 else 0.0)
        self._forget(link, HttpRefusal(status, reason, refusal.detail or text, retry_after))

    def _announce_elsewhere(self, link: EdgeLink, reason: str) -> bool:
        """Asks the next dispatcher that is attached and has not declined the link, within the time for its
        verdict; False if there is none."""
        other = self._streams.choose(link.identity.node_id, self._declined.get(link.number, ()))
        if other is None:
            return False
        self._tools.metrics.announced_again.labels(reason).inc()
        link.stream = other
        other.outgoing.announce(link.announcement())
        return True

    def _forget(self, link: EdgeLink, refusal: HttpRefusal) -> None:
        """An announced link that is refused: nothing of it stays."""
        link.over = True
        if link.verdict_timer:
            link.verdict_timer.cancel()
            link.verdict_timer = None
        del self._links[link.number]
        self._end_connect_span(link, 0, refusal.reason, refusal.text)
        link.transport.refuse(refusal)

    def _verdict_late(self, link: EdgeLink) -> None:
        text = f"no verdict from the dispatcher within {self._verdict_timeout:g} s"
        link.tell_end(_Reason.CLOSE_REASON_UNSPECIFIED, text)
        self._forget(link, HttpRefusal(503, "verdict_timeout", text, self._retry_after))

    # Ends.

    def make_room(self, link: EdgeLink, size_bytes: int) -> None:
        """edge_link.LinkOwner: the oldest of those with the most gives way first."""
        tools = self._tools
        while not link.over and not tools.queued.admits(link.unwritten_bytes, size_bytes):
            most = max(self._links.values(), key=lambda one: one.unwritten_bytes)
            if not most.unwritten_bytes:
                return  # larger than the whole: alone it may
            tools.metrics.queue_evictions.inc()
            detail = f"{most.unwritten_bytes} bytes wait for the edge, the most of all, and there is no room"
            most.close(_Reason.CLOSE_REASON_OVERLOADED, detail)

    def make_incoming_room(self, link: EdgeLink, size_bytes: int) -> None:
        """edge_link.LinkOwner: those whose frames have waited longest give way, not those with large ones."""
        tools = self._tools
        while not link.over and not tools.incoming.admits(link.incoming_bytes, size_bytes):
            waiting = [one for one in self._links.values() if one.incoming_bytes]
            if not waiting:
                return
            oldest = min(waiting, key=lambda one: one.incoming_since)
            tools.metrics.incoming_evictions.inc()
            seconds = tools.loop.time() - oldest.incoming_since
            detail = f"a frame that is not whole for {seconds:.0f} s, longest of all, and there is no room"
            oldest.close(_Reason.CLOSE_REASON_OVERLOADED, detail)

    def link_over(
        self,
        link: EdgeLink,
        reason: link_pb2.CloseReason.ValueType,
        detail: str,
        end: TransportEnd | None,
    ) -> None:
        """edge_link.LinkOwner: tells the dispatcher, the log, the metrics and the trace."""
        del self._links[link.number]
        link.tell_end(reason, detail, end)
        self.on_over(link, reason, detail)
        name = reason_name(reason)
        if link.state is None:
            self._end_connect_span(link, 0, "peer_gone", detail)
            return
        metrics = self._tools.metrics
        metrics.links.dec()
        metrics.links_closed.labels(link.transport.kind, name).inc()
        if is_sampled(link.traceparent):
            self._tools.tracing.record(
                "disconnect",
                link.traceparent,
                attributes={
                    "cloudhub.node.id": link.identity.node_id,
                    "cloudhub.session.epoch": link.epoch,
                    "cloudhub.reason": name,
                },
            )
        told = self._closed_lines.take(link.identity.node_id, self._clock.monotonic())
        if told is not None:
            _log.info(
                "link.closed",
                node=link.identity.node_id,
                epoch=link.epoch,
                link=link.number,
                reason=name,
                detail=detail,
                trace_id=trace_id_of(link.traceparent),
                **told,
            )

    def dispatcher_lost(self, stream: LinkStream) -> None:
        """Admitted links stay, without a dispatcher until they are transferred. Announced ones are announced
        to another one, within the time for their verdict; where there is none they are refused."""
        for link in [link for link in self._links.values() if link.stream is stream]:
            if link.state is not None:
                link.detach()
            elif not self._announce_elsewhere(link, "dispatcher_lost"):
                text = "the dispatcher was lost before its verdict came"
                self._forget(link, HttpRefusal(503, "dispatcher_lost", text, self._retry_after))

    def _end_connect_span(
        self, link: EdgeLink, epoch: int, outcome: str = "admitted", detail: str = ""
    ) -> None:
        self._declined.pop(link.number, None)
        span = self._connect_spans.pop(link.number)
        span.set_attribute("cloudhub.outcome", outcome)
        if epoch:
            span.set_attribute("cloudhub.session.epoch", epoch)
        else:
            fail(span, detail or outcome)
        span.end()
