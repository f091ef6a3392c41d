"""The life of a process: event loop, signals, one sentence when it cannot start."""

import asyncio
import gc
import os
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


def descriptor_limit() -> int:
    """How many descriptors the process may have, as it stands."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def keep_standard_descriptors() -> None:
    """Puts nothing where a standard stream was closed: else a database or a link gets that number, and what a
    library writes to standard error goes into it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one


def on_stop_signals(asked: Callable[[bool], None]) -> None:
    """Calls `asked` in the running loop at SIGTERM, SIGINT and SIGHUP, with whether it may count as a second
    one.

    SIGHUP may not: service managers send it right behind SIGTERM, and a terminal that closes sends it more
    than once. Where whoever started the process has it ignored (nohup), it stays so.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, True)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, asked, False)


def run_process(program: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `main(stop)` on uvloop; SIGTERM, SIGINT and SIGHUP set `stop`, a second SIGTERM or SIGINT ends it
    at once.

    Exits with status 1 and one sentence on a StartupError, with the traceback on anything else.
    """

    async def body() -> None:
        stop = asyncio.Event()
        current = asyncio.current_task()
        assert current is not None

        def on_signal(may_be_second: bool) -> None:
            if stop.is_set() and may_be_second:
                current.cancel()
            stop.set()

        on_stop_signals(on_signal)
        try:
            await main(stop)
        except BaseExceptionGroup as group:
            refused: BaseException | None = group.subgroup(StartupError)
            while isinstance(refused, BaseExceptionGroup):
                refused = refused.exceptions[0]
            raise refused or group from None

    keep_standard_descriptors()
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
