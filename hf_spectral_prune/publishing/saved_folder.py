"""What lies in a saved folder: its figures, and whether its files are still those that the self-check read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..surgery.plan import PruningPlan
from ..utils.files import read_object, read_utf8
from ..utils.types import Json
from .pruning_report import PruningReport

CONFIG, PLAN, REPORT, STATE, README = (
    "config.json",
    "pruning_plan.json",
    "pruning_report.json",
    "pruner_state.json",
    "README.md",
)
# What decides how the reloaded model computes (weights, their index, config, modelling code), and the plan that led to it.
_NOTED = ("*.safetensors", "*.safetensors.index.json", CONFIG, PLAN, "*.py")
_CHUNK = 2**20


@dataclass(frozen=True)
class SavedFolder:
    """A folder that `save_model()` wrote, as plain values.

    Attributes:
        path: where it lies.
        config: `config.json`.
        plan: which units stayed.
        report: `pruning_report.json`: every figure, with its protocol.
        state: `pruner_state.json`, with the log of the rounds.
    """

    path: Path
    config: Json
    plan: PruningPlan
    report: PruningReport
    state: Json


def read_folder(folder: str | Path) -> SavedFolder:
    """Reads the figures of a folder that `save_model()` wrote.

    Raises:
        FileNotFoundError: no such folder, or a file is missing (says which).
        ValueError: a file is not what it should be, or the report lacks a figure that every run has.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"`{folder}` is not a folder. Name one that `cria prune` or `save_model()` wrote.")
    missing = [name for name in (CONFIG, PLAN, REPORT, STATE) if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"`{folder}` has no `{missing[0]}`, so it is no whole folder of a pruned model. Name one that `cria prune` or "
            "`save_model()` wrote."
        )
    try:
        plan = PruningPlan.load(path / PLAN)
    except ValueError as error:
        raise ValueError(f"`{path / PLAN}`: {error}") from None
    report = PruningReport.from_json(read_utf8(path / REPORT), f"`{path / REPORT}`")
    again = "Prune and save the model again."
    return SavedFolder(path, read_object(path / CONFIG, again), plan, report, read_object(path / STATE, again))


@contextmanager
def figures_told(folder: Path) -> Iterator[None]:
    """While open, whatever a figure of the wrong kind makes of the code that shows it is told as what it is.

    Raises:
        ValueError: names the folder's files; one that names the folder itself passes as it is.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise  # it tells what is missing, and where
        raise ValueError(
            f"A figure in the JSON files of `{folder}` (`{REPORT}`, `{STATE}`, `{PLAN}`) is not what a run writes "
            f"({type(error).__name__}: {' '.join(str(error).split())}). Take the files that the run wrote."
        ) from None


def file_digests(folder: Path) -> dict[str, Json]:
    """{name: {"size": bytes, "sha256": hex}} of weights, config, modelling code and plan: what must not change any more."""
    names = sorted({path.name for pattern in _NOTED for path in folder.glob(pattern)})
    return {name: _digest(folder / name) for name in names}


def _digest(file: Path) -> Json:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}


def check_fit_to_publish(saved: SavedFolder) -> None:
    """Checks that the folder passed its self-check and that its files are still those that were checked.

    Raises:
        ValueError: there was no self-check or it failed, or a file was changed, added or removed since (says which).
    """
    again = "Save the model again with `self_check` on."
    checks = saved.report.self_check
    if not checks:
        raise ValueError(f"`{saved.path}` was never self-checked (`self_check` in `{REPORT}` is empty). {again}")
    with figures_told(saved.path):
        for way, result in checks.items():
            # Written so that a figure that is not a number fails.
            if not result["max_abs_diff"] <= result.get("allowed", 0.0):
                raise ValueError(
                    f"`{saved.path}` failed its self-check ({way}: outputs differ by {result['max_abs_diff']:.3g}). {again}"
                )
    noted = saved.report.files
    if not noted:
        raise ValueError(f"`{REPORT}` in `{saved.path}` has no digests of the checked files (`files`). {again}")
    found = file_digests(saved.path)
    for name in sorted(noted.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"`{saved.path / name}` is gone since the self-check. Put it back, or save the model again.")
        if noted.get(name) != found[name]:
            raise ValueError(
                f"`{saved.path / name}` is not the file that the self-check read: it was changed or added since. Put the "
                "checked one back, or save the model again."
            )
    classes = (saved.config.get("auto_map") or {}).values()
    for name in sorted({f"{entry.partition('.')[0]}.py" for entry in classes}):
        if name not in found:
            raise ValueError(f"`{saved.path / name}` is missing, which `auto_map` of `{CONFIG}` names. Save the model again.")
