"""What `make chaos` does, for a minute and with a fixed seed."""

import shutil

import pytest

from chaos.checker import judge
from chaos.hostile.acts import ActKind
from chaos.run import ChaosRun
from chaos.settings import ChaosSettings
from tests.support.postgres import need_postgres, reachable_folder

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(400)
async def test_every_invariant_holds_whatever_is_broken() -> None:
    """C35, C36, C12, C31, C34, C39, invariants 1 to 6: two of each service on PostgreSQL with a standby,
    one kind of fault after the other under load; no operator helps."""
    need_postgres()
    with reachable_folder() as folder:
        run = ChaosRun(
            ChaosSettings(seconds=60.0, seed=1, nodes=24, publish_pause_seconds=0.4, out=folder), print
        )
        try:
            await run.run()
            verdict = judge(run.history, run.node_ids)
            assert {name: found for name, found in verdict.breaches().items() if found} == {}
        except BaseException:
            kept = ChaosSettings().out / "test"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(folder / "data" / "logs", kept / "logs")
            print(f"logs: {kept}")
            raise
    assert verdict.holds
    assert verdict.accepted > 5000
    assert verdict.uploads > 200
    assert len(verdict.faults) >= 6
    assert verdict.faults["overtake dispatcher"] > 0
    assert verdict.faults["kill enrolment"] > 0
    # Those of the second fleet, and what nodes got in the middle of each fault.
    assert verdict.certificates > 12 + 2 * verdict.faults.total()
    assert verdict.moves > 0
    assert {kind.value for kind in ActKind} <= verdict.acts.keys()
