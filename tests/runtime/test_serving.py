"""What health goes by, whatever is learned in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.serving import LIVE, Serving

NEEDS = {"publishing": {"store"}, "links": {"store", "sessions"}}
STEPS = st.lists(
    st.one_of(st.tuples(st.sampled_from(["store", "sessions"]), st.booleans()), st.just(("drains", True)))
)


@given(STEPS)
def test_a_service_serves_by_what_it_needs_until_a_drain_begins(steps: list[tuple[str, bool]]) -> None:
    """One function of (drain, store, sessions); what is learned later never undoes a drain."""
    serving, there, drains = Serving(NEEDS), {"store": False, "sessions": False}, False
    for name, value in steps:
        if name == "drains":
            serving.drains()
            drains = True
        else:
            serving.learned(**{name: value})
            there[name] = value
        assert serving.serves("publishing") == (there["store"] and not drains)
        assert serving.serves("links") == serving.serves("") == (all(there.values()) and not drains)
        assert serving.serves(LIVE)
        assert serving.serves("nobody") is None
    serving.stopped()
    serving.learned(store=True, sessions=True)
    assert not any(serving.serves(name) for name in ("", LIVE, *NEEDS))


def test_a_process_without_services_is_ready_when_it_says_so() -> None:
    serving = Serving({})
    assert serving.serves("") is False
    serving.learned(ready=True)
    assert serving.serves("") is True
