"""The checker finds the breach of each invariant, and passes every history that a right hub could leave."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from chaos.checker import Verdict, judge
from chaos.history import (
    ActDone,
    CertificateHeld,
    CertificateListed,
    Count,
    FaultDone,
    Held,
    History,
    LinkSeen,
    LinksSample,
    Outcome,
    Publish,
    RegistrySample,
    SessionSeen,
    SessionWrite,
    Step,
    TokenListed,
    Waiting,
)

NODE = "edge-1"
PLACE = "default/configmap/a"


def published(version: int, operation: str = "update", uid: str = "u1", **other: Any) -> Publish:
    fields: dict[str, Any] = {"outcome": Outcome.ACCEPTED, "sent_at": 1.0, "answered_at": 1.1, **other}
    return Publish(NODE, PLACE, uid, version, operation, **fields)


def applied(version: int, operation: str = "update", uid: str = "u1") -> Step:
    return Step(NODE, PLACE, uid, version, operation)


def session(epoch: int, link: int = 1, connector: str = "c1", dispatcher: str = "d1") -> SessionSeen:
    return SessionSeen(NODE, epoch, connector, link, dispatcher)


def history(**fields: Any) -> History:
    """Versions 1 and 2 were published and stored, one session, one link; unless said otherwise."""
    whole: dict[str, Any] = {
        "publishes": [published(1, "insert"), published(2)],
        "steps": [applied(1, "insert"), applied(2)],
        "held": {NODE: {PLACE: Held("u1", 2)}},
        "final_sessions": [session(7)],
        "final_links": [LinkSeen(NODE, 7, 1)],
        **fields,
    }
    return History(seed=1, limit_total=1, **whole)


def verdict(**fields: Any) -> Verdict:
    return judge(history(**fields), [NODE])


def breaches(**fields: Any) -> dict[str, list[str]]:
    """The lines of the table that tell a breach."""
    return {name: found for name, found in verdict(**fields).breaches().items() if found}


def test_a_history_without_a_fault_holds() -> None:
    found = verdict(faults=[FaultDone("kill sessions", "sessions-1", 2.0, 4.5)])
    assert found.holds
    assert (found.accepted, found.acknowledged, found.superseded) == (2, 2, 0)
    assert found.faults == {"kill sessions": 1}
    assert found.longest_recovery_seconds == 2.5


def test_answers_that_hostile_parties_should_not_get_are_breaches() -> None:
    """Invariants 7, 10: an act that reached nobody counts for nothing."""
    acts = [
        ActDone("refused publishes", 1.0, 0.1, through=True, wrong=["edge-1: OUTCOME_ACCEPTED"]),
        ActDone("refused publishes", 2.0, 0.1, through=True),
        ActDone("poison message", 3.0, 0.1, through=False),
    ]
    found = verdict(acts=acts)
    assert found.acts == {"refused publishes": 2}
    assert not found.holds
    assert breaches(acts=acts) == {
        "hostile parties": ["refused publishes at 1.0 s: edge-1: OUTCOME_ACCEPTED"]
    }


def test_moves_of_links_are_counted() -> None:
    """C37: another epoch, another dispatcher, the same link."""
    samples = [
        RegistrySample("sessions-1", float(n), [one])
        for n, one in enumerate((session(5), session(5), session(6, dispatcher="d2"), session(7, link=2)))
    ]
    assert verdict(registry=samples).moves == 1


def test_a_run_in_which_nothing_was_accepted_proves_nothing() -> None:
    assert not verdict(publishes=[], steps=[], held={}).holds


def test_a_history_survives_being_written_and_read() -> None:
    whole = history(registry=[RegistrySample("s", 1.0, [session(7)])], waiting=[Waiting(NODE, "u1", 2, "x")])
    assert msgspec.json.decode(msgspec.json.encode(whole), type=History) == whole


# Invariant 1


def test_an_accepted_message_that_is_gone_is_found() -> None:
    """Invariant 1: also if the node holds it by no message of ours."""
    assert breaches(steps=[applied(1, "insert")]) == {
        "lost": [f"{NODE} {PLACE}: update of u1 version 2 was accepted and is gone"]
    }


def test_a_superseded_message_is_not_lost() -> None:
    """Invariant 1: by an accepted version, or by one whose outcome nobody knows."""
    found = verdict(steps=[applied(2)])
    assert found.holds
    assert (found.acknowledged, found.superseded) == (1, 1)
    unknown = published(3, outcome=Outcome.UNKNOWN)
    both = {"publishes": [published(2), unknown], "steps": [applied(3)]}
    assert verdict(**both, held={NODE: {PLACE: Held("u1", 3)}}).holds


def test_what_the_hub_says_is_waiting_is_not_lost() -> None:
    """Invariants 1 and 3: up to the version that the hub names; but it should not wait at the end."""
    short = {"steps": [applied(1, "insert")], "held": {NODE: {PLACE: Held("u1", 1)}}}
    assert breaches(**short, waiting=[Waiting(NODE, "u1", 2, "pending")]) == {
        "not recovered": [f"{NODE}: version 2 of u1 still waits at the end: pending"]
    }
    assert "lost" in breaches(**short, waiting=[Waiting(NODE, "u1", 1, "pending")])


def test_a_stale_message_is_owed_to_nobody() -> None:
    """C13: another publisher has published something newer, or has deleted the object."""
    assert verdict(publishes=[published(1, outcome=Outcome.STALE), published(2)]).holds
    late = [published(1, "insert"), published(2), published(3, "delete"), published(4, outcome=Outcome.STALE)]
    steps = [applied(1, "insert"), applied(2), applied(3, "delete")]
    assert verdict(publishes=late, steps=steps, held={}).holds


def test_a_message_that_should_have_been_taken_is_found() -> None:
    """C13, invariant 9."""
    for outcome in (Outcome.STALE, Outcome.REJECTED):
        wrong = [published(1, "insert"), published(2), published(3, outcome=outcome)]
        assert breaches(publishes=wrong) == {
            "wrongly refused": [f"{NODE} {PLACE}: update of u1 version 3 was {outcome.value}"]
        }


def test_a_lost_deletion_is_found() -> None:
    """Invariants 1 and 3."""
    found = breaches(publishes=[published(1, "insert"), published(2), published(3, "delete")])
    assert found == {
        "lost": [
            f"{NODE} {PLACE}: delete of u1 version 3 was accepted and is gone",
            f"{NODE} {PLACE}: holds u1 version 2, not nothing",
        ]
    }


def test_a_confirmed_upload_that_nobody_got_is_found() -> None:
    """C31."""
    assert breaches(uploads_confirmed={NODE: [1, 2]}, uploads_handed={NODE: [1, 1]}) == {
        "lost": [f"{NODE}: upload 2 was confirmed and never handed on"]
    }
    assert verdict(uploads_confirmed={NODE: [1, 2]}, uploads_handed={NODE: [1, 2, 1, 3]}).holds


def test_uploads_in_the_wrong_order_are_found() -> None:
    """C31."""
    assert breaches(uploads_handed={NODE: [1, 3, 2]}) == {
        "uploads out of order": [f"{NODE}: upload 3 came before 2"]
    }


# Invariant 3


def test_a_node_that_ends_with_an_old_version_is_found() -> None:
    """Invariant 3: also if the newest one was stored in between."""
    assert breaches(held={NODE: {PLACE: Held("u1", 1)}}) == {
        "lost": [f"{NODE} {PLACE}: holds u1 version 1, not u1 version 2"]
    }
    assert breaches(held={}) == {"lost": [f"{NODE} {PLACE}: holds nothing, not u1 version 2"]}


def test_an_object_that_nobody_published_is_found() -> None:
    """Invariant 3."""
    held = {NODE: {PLACE: Held("u1", 2), "default/configmap/b": Held("u9", 1)}}
    assert breaches(held=held) == {
        "lost": [f"{NODE} default/configmap/b: holds u9 version 1, which nobody published"]
    }


def test_a_delete_of_unknown_outcome_may_have_come_or_not() -> None:
    """Invariant 3."""
    publishes = [published(1, "insert"), published(2), published(3, "delete", outcome=Outcome.UNKNOWN)]
    assert verdict(publishes=publishes).holds
    gone = [applied(1, "insert"), applied(2), applied(3, "delete")]
    assert verdict(publishes=publishes, steps=gone, held={}).holds
    assert "lost" in breaches(publishes=publishes, held={NODE: {PLACE: Held("u1", 1)}})


def test_the_last_object_of_a_path_is_what_must_be_there() -> None:
    """Invariant 3, C15."""
    publishes = [published(1, "insert"), published(2, "delete"), published(3, "insert", "u2")]
    steps = [applied(1, "insert"), applied(2, "delete"), applied(3, "insert", "u2")]
    good = {NODE: {PLACE: Held("u2", 3)}}
    assert verdict(publishes=publishes, steps=steps, held=good).holds
    assert breaches(publishes=publishes, steps=steps, held={}) == {
        "lost": [f"{NODE} {PLACE}: holds nothing, not u2 version 3"]
    }


# Invariant 2


def test_an_older_version_after_a_newer_one_is_found() -> None:
    """Invariant 2: repetitions are allowed."""
    back = [applied(1, "insert"), applied(2), applied(2), applied(1), applied(2)]
    assert breaches(steps=back) == {
        "stale overwrites": [f"{NODE} {PLACE}: update of u1 version 1 came after 2"]
    }


def test_an_object_that_comes_back_after_its_deletion_is_found() -> None:
    """Invariant 2, C13."""
    publishes = [published(1, "insert"), published(2), published(3, "delete")]
    steps = [applied(1, "insert"), applied(3, "delete"), applied(2), applied(3, "delete")]
    assert breaches(publishes=publishes, steps=steps, held={}) == {
        "stale overwrites": [f"{NODE} {PLACE}: update of u1 version 2 came after its deletion"]
    }


def test_a_late_deletion_of_the_former_object_is_found() -> None:
    """Invariant 2, C15: an edge deletes by path."""
    publishes = [published(1, "insert"), published(2, "delete"), published(3, "insert", "u2")]
    late = [applied(1, "insert"), applied(2, "delete"), applied(3, "insert", "u2"), applied(2, "delete")]
    assert breaches(publishes=publishes, steps=late, held={NODE: {PLACE: Held("u2", 3)}}) == {
        "stale overwrites": [f"{NODE} {PLACE}: delete of u1 version 2 came after u2"]
    }


# Invariant 4


def test_two_live_sessions_of_a_node_in_one_answer_are_found() -> None:
    """Invariant 4."""
    sample = RegistrySample("sessions-1", 3.0, [session(6), session(7, 2)])
    found = verdict(registry=[sample])
    assert found.double_sessions == [f"{NODE}: 2 live sessions at 3.00 s, says sessions-1"]
    assert not found.holds


def test_an_epoch_that_falls_is_found() -> None:
    """Invariant 4: to whoever asks one replica; two replicas may answer in any order."""
    samples = [RegistrySample("sessions-1", at, [session(epoch)]) for at, epoch in ((1.0, 7), (2.0, 6))]
    assert breaches(registry=samples) == {"double sessions": [f"{NODE}: epoch 6 at 2.00 s, after 7"]}
    elsewhere = [samples[0], RegistrySample("sessions-2", 2.0, [session(6)])]
    assert breaches(registry=elsewhere) == {}


def test_an_epoch_of_two_owners_is_found() -> None:
    """Invariant 4, C37: an epoch changes with the dispatcher."""
    samples = [
        RegistrySample("sessions-1", 1.0, [session(7)]),
        RegistrySample("sessions-2", 2.0, [session(7, dispatcher="d2")]),
    ]
    assert breaches(registry=samples) == {
        "double sessions": [f"{NODE}: epoch 7 is of [('c1', 1, 'd1'), ('c1', 1, 'd2')]"]
    }
    assert "double sessions" in breaches(registry=samples[:1], changes=[session(7, link=2)])
    assert breaches(registry=samples[:1], changes=[session(7), session(8, link=2)]) == {}


def test_an_epoch_on_two_links_is_found() -> None:
    """Invariant 4."""
    samples = [LinksSample(name, 1.0, [LinkSeen(NODE, 7, 1)]) for name in ("connector-1", "connector-2")]
    assert breaches(links=samples) == {
        "double sessions": [f"{NODE}: links ('connector-1', 1) and ('connector-2', 1) both have epoch 7"]
    }


def test_a_write_of_a_session_that_was_fenced_is_found() -> None:
    """Invariant 4: the store has taken an attempt of a former owner."""
    writes = [SessionWrite(NODE, 7, "sent", "m1"), SessionWrite(NODE, 8, "sent", "m1")]
    other = SessionWrite("edge-2", 7, "sent", "m3")
    late = SessionWrite(NODE, 7, "acknowledged", "m1")
    assert breaches(writes=[*writes, other]) == {}
    assert breaches(writes=[*writes, late, other]) == {
        "fenced writes": ["edge-1: acknowledged of m1 was written under epoch 7, after sent of m1 under 8"]
    }


def test_a_node_that_ends_without_its_one_link_is_found() -> None:
    """Invariants 4 and 6."""
    both = "the registry ends with (epoch, link)"
    for links, told in (
        ([], "[]"),
        ([LinkSeen(NODE, 6, 1)], "[(6, 1)]"),
        ([LinkSeen(NODE, 7, 1), LinkSeen(NODE, 7, 1)], "[(7, 1), (7, 1)]"),
    ):
        assert breaches(final_links=links) == {
            "double sessions": [f"{NODE}: {both} [(7, 1)], the connectors with {told}"]
        }


# Invariants 5 and 6


def test_a_session_above_the_limit_is_found() -> None:
    """Invariant 5: at any instant that was seen."""
    other = SessionSeen("edge-2", 3, "c1", 2, "d1")
    sample = RegistrySample("sessions-1", 3.0, [session(7), other])
    assert breaches(registry=[sample]) == {"limit overruns": ["2 live sessions at 3.00 s, the limit is 1"]}


def test_what_is_left_over_at_the_end_is_found() -> None:
    """Invariant 6."""
    counts = [Count("descriptors of connector-1", 900, 120), Count("sessions", 1, 1)]
    assert breaches(counts=counts) == {"left over": ["descriptors of connector-1: 900, at most 120"]}
    assert breaches(unclean=["sessions-1 did not end by itself"]) == {
        "left over": ["sessions-1 did not end by itself"]
    }


def test_a_hub_that_does_not_recover_is_found() -> None:
    """C35."""
    assert breaches(faults=[FaultDone("kill sessions", "sessions-2", 2.0, None)]) == {
        "not recovered": ["not recovered from kill sessions of sessions-2 at 2.0 s"]
    }


# Every history of a right hub passes


def enrolled(**fields: Any) -> dict[str, list[str]]:
    """Two nodes got in by the two uses of a token, one has renewed; unless said otherwise."""
    whole: dict[str, Any] = {
        "tokens": [TokenListed("t1", 2, 0), TokenListed("unused", 3, 3)],
        "certificates_listed": [
            CertificateListed("a", "1", "t1"),
            CertificateListed("b", "2", "t1"),
            CertificateListed("b", "3", ""),
        ],
        "certificates_held": [
            CertificateHeld("a", "1", "t1"),
            CertificateHeld("b", "2", "t1"),
            CertificateHeld("b", "3", ""),
        ],
        "connected": ["a", "b"],
        **fields,
    }
    return breaches(**whole)


def test_tokens_that_were_used_as_often_as_they_may_be_are_right() -> None:
    assert enrolled() == {}


def test_an_answer_that_was_lost_and_given_again_is_right() -> None:
    """The hub has signed twice for one key of one node, which is one use."""
    listed = [*(CertificateListed("a", serial, "t1") for serial in "01"), CertificateListed("b", "2", "t1")]
    held = [CertificateHeld("a", "1", "t1"), CertificateHeld("b", "2", "t1")]
    assert enrolled(certificates_listed=listed, certificates_held=held) == {}


def test_a_token_that_let_in_more_nodes_than_it_has_uses_is_found() -> None:
    """Also if one of them has not heard of it."""
    more = [CertificateListed(node, node, "t1") for node in "abc"]
    held = [CertificateHeld(node, node, "t1") for node in "ab"]
    assert enrolled(certificates_listed=more, certificates_held=held) == {
        "enrolment": ["token t1 of 2 uses let in 3 nodes: a, b, c"]
    }


def test_a_use_that_nobody_has_anything_of_is_found() -> None:
    found = enrolled(tokens=[TokenListed("t1", 3, 0)])
    assert found == {
        "enrolment": ["token t1 was used 3 times, as the hub counts; 2 nodes have a certificate by it"]
    }
    free = enrolled(tokens=[TokenListed("t1", 2, 1)])
    assert free == {
        "enrolment": ["token t1 was used 1 times, as the hub counts; 2 nodes have a certificate by it"]
    }


def test_a_certificate_at_an_edge_that_is_not_on_record_is_found() -> None:
    listed = [CertificateListed("a", "1", "t1"), CertificateListed("b", "2", "t1")]
    assert enrolled(certificates_listed=listed) == {
        "enrolment": ["b has certificate 3, which is not on record"]
    }
    # On record, but as another node's.
    swapped = [
        CertificateListed("a", "1", "t1"),
        CertificateListed("b", "2", "t1"),
        CertificateListed("a", "3", ""),
    ]
    assert enrolled(certificates_listed=swapped) == {
        "enrolment": ["b has certificate 3, which is not on record"]
    }


def test_a_node_that_enrolled_and_got_no_link_is_found() -> None:
    assert enrolled(connected=["a"]) == {"enrolment": ["b enrolled and got no link"]}


class RightHub:
    """A hub and an edge without faults, between publishers and links that have them.

    Each publish is accepted, or accepted although its publisher never knows, or lost on the way. What waits
    is sent at some time: sent twice, or never if something newer came before.
    """

    def __init__(self) -> None:
        self.history = History(seed=0, limit_total=0)
        self._waiting: list[Publish] = []
        self._disk: dict[str, Held] = {}

    def publish(self, version: int, resource: str, uid: str, operation: str, fate: str) -> None:
        outcome = Outcome.ACCEPTED if fate == "accepted" else Outcome.UNKNOWN
        publish = Publish(NODE, resource, uid, version, operation, outcome, float(version), version + 0.5)
        self.history.publishes.append(publish)
        if fate != "lost":
            self._waiting = [one for one in self._waiting if one.uid != uid]
            self._waiting.append(publish)

    def send(self, times: int) -> None:
        if not self._waiting:
            return
        publish = self._waiting.pop(0)
        for _ in range(times):
            self.history.steps.append(
                Step(NODE, publish.resource, publish.uid, publish.version, publish.operation)
            )
        if publish.deletes:
            self._disk.pop(publish.resource, None)
        else:
            self._disk[publish.resource] = Held(publish.uid, publish.version)

    def settle(self) -> History:
        while self._waiting:
            self.send(1)
        self.history.held = {NODE: dict(self._disk)}
        return self.history


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["accepted", "accepted", "unanswered", "lost"]),
            st.booleans(),
            st.integers(0, 3),
        ),
        max_size=40,
    )
)
def test_no_history_of_a_right_hub_is_called_broken(rounds: list[tuple[str, str, bool, int]]) -> None:
    """Invariants 1 to 3: growing versions, deletes and successors, with publishers that lose answers."""
    hub = RightHub()
    generations = {"a": 0, "b": 0}
    live = {"a": False, "b": False}
    for version, (name, fate, deletes, sends) in enumerate(rounds, 1):
        if live[name] and deletes:
            operation, live[name] = "delete", False
        else:
            operation = "update" if live[name] else "insert"
            generations[name] += not live[name]
            live[name] = True
        # A publisher goes on to the next object only once it knows that the former was deleted.
        if operation == "delete":
            fate = "accepted"
        hub.publish(version, f"default/configmap/{name}", f"{name}-{generations[name]}", operation, fate)
        for _ in range(sends):
            hub.send(1 + version % 2)
    found = judge(hub.settle(), [])
    assert not any(found.breaches().values()), found


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_no_sessions_of_a_right_registry_are_called_broken(events: list[int]) -> None:
    """Invariants 4 and 5: opens, transfers and closes, seen through two replicas."""
    whole = History(seed=0, limit_total=1)
    epoch, link, dispatcher, live = 0, 0, 1, False
    for number, event in enumerate(events):
        if event == 0:
            epoch, link, live = epoch + 1, link + 1, True
        elif event == 1 and live:
            epoch, dispatcher = epoch + 1, 3 - dispatcher
        else:
            live = False
        seen = [SessionSeen(NODE, epoch, "c1", link, f"d{dispatcher}")] if live else []
        whole.registry.append(RegistrySample(f"sessions-{number % 2}", float(number), seen))
        whole.links.append(
            LinksSample("c1", float(number), [LinkSeen(NODE, one.epoch, one.link) for one in seen])
        )
        whole.final_sessions = seen
        whole.final_links = whole.links[-1].links
    found = judge(whole, [NODE] if live else [])
    assert not any(found.breaches().values()), found
