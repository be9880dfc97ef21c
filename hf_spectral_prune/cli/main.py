"""The `cria` command."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from .. import __version__
from ..utils.interrupts import raise_from_now_on
from ..utils.words import did_you_mean
from .errors import told

# name -> what it does; each is a module beside this one with a function `main(argv)`, imported when it is called.
COMMANDS = {
    "prune": "Prunes a model and saves it, with its plan and report.",
    "score": "Scores every unit of a model and writes the scores as JSON.",
    "evaluate": "Measures held-out quality, size and speed of a model, and tasks of lm_eval; prints JSON.",
    "compare": "Compares criteria on one model: a table, JSON, CSV and a plot; an interrupted run continues.",
    "ablate": "Measures what removing single units really costs, and how well each criterion predicts it.",
    "card": "Writes or updates the model card of a pruned folder.",
    "report": "Rewrites the report page of a pruned folder or a comparison.",
    "export": "Exports a model folder to GGUF (llama.cpp) or ONNX.",
    "push": "Pushes a pruned folder to the Hub in one commit.",
    "detrimental": "Finds, on ten labelled examples, neurons that make a model confident but not correct, and removes them.",
    "demo": "Prunes SmolLM2-135M-Instruct by 20 % and prints a before/after table.",
}


# What a stopped command leaves; `prune` says it itself, by its checkpoints.
_WAYS_ON = {
    "compare": "Run the same command again to continue with the missing cells.",
    "ablate": "Run the same command again to continue with the missing units.",
}

# Seconds that the other processes of a launcher leave the first to fail of the same: it tells, and the launcher ends them.
_AFTER_THE_FIRST = 60


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what is half-written goes."""


def _usage() -> str:
    rows = "\n".join(f"  {name:13}{purpose}" for name, purpose in COMMANDS.items())
    hint = "`cria COMMAND --help` explains every flag, `cria --version` tells the version."
    return f"usage: cria COMMAND [MODEL] [recipe.yaml] [--flags]\n\n{rows}\n\n{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; or after one line on stderr 2 for input that cannot work, 1 for a run that failed (see `told`), 130 or 143 for one
        that SIGINT or SIGTERM stopped. With `CRIA_TRACEBACK=1` in the environment the exception is raised instead.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"cria {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(
            f"cria: `{words[0]}` is not a command.{did_you_mean(words[0], COMMANDS, otherwise=' `--help` lists all.')}",
            file=sys.stderr,
        )
        return 2
    # It warns of a faster kernel that it finds no package for; nothing here computes in four bits.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # That weights lie on the disk is what `--offload_folder` asked for.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
    # What a library will call otherwise one day is told to its programmers, not to users of this command.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with _terminated_in_order():
            raise_from_now_on()
            _check_alone(words[0])
            importlib.import_module(f".{words[0]}", __package__).main(words[1:])
    except KeyboardInterrupt as stopped:
        by, code = ("SIGTERM", 143) if isinstance(stopped, _Terminated) else ("Ctrl-C", 130)
        way_on = str(stopped) or _WAYS_ON.get(words[0], "Nothing was left half-written: start it again.")
        if not _process():
            print(f"cria {words[0]}: Stopped by {by}. {way_on}", file=sys.stderr)
        return code
    except Exception as error:
        if os.environ.get("CRIA_TRACEBACK"):
            raise
        line, status = told(error)
        if _process() and "TORCHELASTIC_RUN_ID" in os.environ:
            # Bad input fails on all of them: this one is then ended as it sleeps, and the line is there once.
            time.sleep(_AFTER_THE_FIRST)
        print(f"cria {words[0]}{_process()}: {line}", file=sys.stderr)
        return status
    return 0


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that locks and half-written folders go."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread gets signals
        return
    own = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a worker that was forked dies of it, as any process does
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _process() -> str:
    """Which of several processes speaks; the first one need not say."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" or os.environ.get("WORLD_SIZE", "1") == "1" else f" (process {rank})"


def _check_alone(command: str) -> None:
    """Tells of a launcher that started several processes, each of which would write the same files; `prune` shares its work."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size.isdigit() and int(size) > 1 and command != "prune":
        raise ValueError(
            f"`WORLD_SIZE` is {size}: a launcher started several processes, and `cria {command}` works in one. Start it without "
            "`accelerate launch` or `torchrun`; `cria prune` can be started with them, and a Trainer that has a "
            "`SpectralPruningCallback`."
        )


if __name__ == "__main__":
    sys.exit(main())
