"""Prunes a model by the command line under a limit of memory that is not enough for its weights: a script for forks.

    larger_than_memory.py HEADROOM_MIB ARGUMENTS...

A process that holds HEADROOM_MIB more private memory than at its start is killed at once, as by a machine that has no more.
Limits of the system (RLIMIT_AS, RLIMIT_DATA) would not do: they count what is mapped or reserved, also where no memory was taken
for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

# Imports are no part of what is measured.
import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import scipy.sparse.linalg  # noqa: F401

import hf_spectral_prune.pruner
import hf_spectral_prune.publishing.report.charts  # noqa: F401
from hf_spectral_prune.cli.main import main as cria

KILLED = 137


def private_bytes() -> int:
    """Private memory that this process has taken."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def kill_above(limit: int) -> None:
    """Ends this process once it has taken more."""
    while private_bytes() <= limit:
        time.sleep(0.002)
    os._exit(KILLED)


def main() -> int:
    headroom, *words = sys.argv[1:]
    limit = private_bytes() + int(headroom) * 2**20
    threading.Thread(target=kill_above, args=(limit,), daemon=True).start()
    return cria(words)


if __name__ == "__main__":
    raise SystemExit(main())
