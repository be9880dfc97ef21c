"""Ctrl-C in the first moments of the command, while modules are imported and no `try` of this package has begun."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. Where a plain `KeyboardInterrupt` has passed through an `exec` of text, as dataclasses are made, `python -m` ends
    by the signal in place of its exit status, though it was caught."""


def answer_while_starting() -> None:
    """Where this process is the command itself, a Ctrl-C ends it in one line; nothing else imports the package under its name."""
    started = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    if started in ("cria", "-m") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_from_now_on() -> None:
    """From here on a Ctrl-C is a `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _raise)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"cria: Stopped by Ctrl-C. Nothing was left half-written: start it again.\n")
    os._exit(130)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted
