"""The life of a process: event loop, signals, one sentence when it cannot start."""

import asyncio
import gc
import resource
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from services.runtime.errors import StartupError


def raise_descriptor_limit() -> None:
    """Lets the process have as many descriptors as it may: container runtimes and service managers start
    processes with a soft limit of 1024, which the links of a connector exceed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_process(program: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `main(stop)` on uvloop; SIGTERM and SIGINT set `stop`, a second one ends at once.

    Exits with status 1 and one sentence on a StartupError, with the traceback on anything else.
    """

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        current = asyncio.current_task()
        assert current is not None

        def on_signal() -> None:
            if stop.is_set():
                current.cancel()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            await main(stop)
        except BaseExceptionGroup as group:
            refused: BaseException | None = group.subgroup(StartupError)
            while isinstance(refused, BaseExceptionGroup):
                refused = refused.exceptions[0]
            raise refused or group from None

    raise_descriptor_limit()
    # What was imported stays: no collection need look at it, which takes longer than all the rest.
    gc.freeze()
    gc.enable()
    # Long-lived rows and links dominate the heap; frequent full collections cost latency only.
    gc.set_threshold(50_000, 20, 50)
    # The loop and the store's thread share the interpreter; with the default of 5 ms the loop waits
    # that long for its turn whenever a transaction is being prepared. Much shorter ones cost throughput.
    sys.setswitchinterval(0.002)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(body())
    except StartupError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except asyncio.CancelledError:
        raise SystemExit(130) from None
