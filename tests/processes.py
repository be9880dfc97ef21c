"""Runs a script in two processes that train together on the CPU (gloo), as `torchrun --nproc_per_node 2` would."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from forks import ForkServer

_TIMEOUT = 300.0  # seconds; far above what an idle machine needs


def run_in_two_processes(forks: ForkServer, script: str, folder: Path, **environment: str) -> list[dict]:
    """What each process wrote to `rank{rank}.json` in `folder`, which is the script's argument.

    Never waits for longer than `_TIMEOUT`: processes that hang, or whose partner has failed, are ended and their logs shown.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(Path(__file__).with_name(script)), str(folder)]
    processes, logs = [], [folder / f"rank{rank}.log" for rank in range(2)]
    for rank, log in enumerate(logs):
        variables = os.environ | common | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w") as output:
            processes.append(forks.start(command, stdout=output, stderr=output, env=variables))
    end = time.monotonic() + _TIMEOUT
    try:
        # One that fails leaves the other waiting.
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() not in (None, 0) for process in processes):
                break
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
