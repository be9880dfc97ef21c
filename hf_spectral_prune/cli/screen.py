"""What commands put on the screen around their work: the target in numbers, and where the result is and how to load it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..utils.types import Json

if TYPE_CHECKING:
    from ..publishing.saved_folder import SavedFolder


@dataclass
class ScreenArguments:
    """What a command prints."""

    json: bool = field(default=False, metadata={"help": "Print the result as one JSON object, for programs."})


def say(text: str) -> None:
    """A line for the person at the terminal; what a program reads goes to stdout."""
    tqdm.write(text, file=sys.stderr)  # above the bar, where there is one


def quiet_libraries() -> None:
    """Leaves the bars of other libraries out, which tell a user nothing to act on; downloads keep theirs on a terminal."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()  # the line above takes those of downloads too
    else:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quiet_warnings() -> None:
    """Leaves out what this package and transformers warn of."""
    for library in (__name__.partition(".")[0], "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)


def ending(folder: str) -> str:
    """The end of a run, for a person: figures before and after, where the result is, how to load it, what was not measured."""
    from ..publishing.card.tables import before_after_table
    from ..publishing.card.words import is_cria, loading_code
    from ..publishing.saved_folder import read_folder

    saved = read_folder(folder)
    parts = [
        before_after_table(saved.report),
        f"Saved in `{folder}`, with a report page (report.html). Load it with",
        _indented(loading_code(saved, folder, remote=is_cria(saved))),
    ]
    if missing := _not_measured(saved, folder):
        parts.append(f"Not measured: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def ending_of_targets(table: str, folders: Sequence[str]) -> str:
    """The end of a run with several targets: their table, where the results are, how to load one of them."""
    from ..publishing.card.words import is_cria, loading_code
    from ..publishing.saved_folder import read_folder

    saved = read_folder(folders[0])
    where = " and ".join(f"`{folder}`" for folder in folders)
    code = _indented(loading_code(saved, folders[0], remote=is_cria(saved)))
    return f"{table}\nSaved in {where}, each with a report page (report.html). Load the first with\n\n{code}"


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines() if line)


def _not_measured(saved: SavedFolder, folder: str) -> list[str]:
    from ..publishing.card.tables import is_unclear, speed_rows
    from ..publishing.card.words import pipeline_tag

    report = saved.report
    missing = []
    if not report.metrics_before:
        missing.append("quality (there was no held-out data)")
    else:
        missing.append("quality on other data and tasks")
    if report.latency is None:
        # A plain `cria evaluate` would ask for text to measure on.
        decoder = pipeline_tag(saved) == "text-generation"
        missing.append(f"speed (`cria evaluate {folder} --calibration python_docs`)" if decoder else "speed")
    elif is_unclear(speed_rows(saved)):
        missing.append("how the speed changed (the timings of both models overlap; an idle machine tells more)")
    if not report.self_check:
        missing.append("whether the folder loads again (`self_check` was off)")
    return missing


def as_json(folder: str) -> str:
    """The end of a run, for a program: where the result is, and its figures."""
    from ..publishing.saved_folder import read_folder

    report = read_folder(folder).report
    names = (
        "parameters_before",
        "parameters_after",
        "reduction",
        "metrics_before",
        "metrics_after",
        "lm_eval",
        "latency",
        "size_on_disk_before",
        "size_on_disk",
    )
    figures: Json = {name: getattr(report, name) for name in (*names, "sizes", "notes")}
    return json.dumps({"output_dir": folder, **figures})
