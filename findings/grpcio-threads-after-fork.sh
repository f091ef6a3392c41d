#!/usr/bin/env bash
# grpcio 1.85.1, CPython 3.11, Linux: a process that serves with grpc.aio and starts another program by
# subprocess with a preexec_fn. Expected: between fork and exec the child has the one thread that forked. Seen:
# the core says that it skips its fork handlers, and the child has several threads of the core all the same, which
# run on until exec (they may call into Python there, whose state a fork leaves as it was). With
# GRPC_ENABLE_FORK_SUPPORT=0 before grpc is first used, the child has one thread and nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import os
import subprocess
import sys
import time

import grpc


def before_exec() -> None:
    time.sleep(0.3)
    os.write(1, b"%d" % len(os.listdir("/proc/self/task")))


async def main() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.channel_ready()
        subprocess.run([sys.executable, "-c", ""], preexec_fn=before_exec, check=True)
    await server.stop(None)


asyncio.run(main())
PROGRAM
unset GRPC_ENABLE_FORK_SUPPORT
default=$("$folder/venv/bin/python" "$folder/program.py" 2>"$folder/said")
off=$(GRPC_ENABLE_FORK_SUPPORT=0 "$folder/venv/bin/python" "$folder/program.py")
said=$(grep -c "skipping fork() handlers" "$folder/said" || true)
echo "threads in the child: $default by default (skipping is said $said times), $off with GRPC_ENABLE_FORK_SUPPORT=0"
[[ $default -gt 1 && $said -ge 1 && $off -eq 1 ]]
