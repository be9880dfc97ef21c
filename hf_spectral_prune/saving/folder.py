"""Writes the output folder whole or not at all, and proves it by reloading it in a fresh process."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, TrainerState
from transformers.utils import GENERATION_CONFIG_NAME, logging

from ..planning import SCORES_FILE, scores_to_json
from ..publishing.card.write import read_card, readme_text, write_card
from ..publishing.report.write import write_report
from ..publishing.saved_folder import PLAN, README, REPORT, STATE, file_digests
from ..utils.words import in_a_line
from . import checkpoint
from .output import PruningOutput
from .reload import check_in_fresh_process

logger = logging.get_logger(__name__)


def check_output_dir(folder: str | Path, overwrite: bool, source: str | None = None) -> None:
    """Refuses a folder that holds something else than checkpoints of a pruning run, or that cannot be made or replaced.

    Args:
        source: folder or file (or name on the Hub) of the model that is pruned.

    Raises:
        ValueError: the folder is not empty, is a file or a mount point, is in a folder that cannot be written to, has the
            source inside, or has a README.md that cannot be read (its text will be kept).
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"`output_dir` `{folder}` is a file. Name a folder.")
    _check_replaceable(folder)
    if source and Path(source).exists() and folder.resolve() in Path(source).resolve().parents:
        raise ValueError(
            f"`output_dir` `{folder}` holds the model to prune (`{source}`), which would go when the folder is replaced. Name "
            "another folder."
        )
    if overwrite:
        read_card(readme_text(folder), folder / README)
    if overwrite or not folder.exists():
        return
    others = [path.name for path in folder.iterdir() if path.name != "runs" and not checkpoint.is_own(path)]
    if others:
        raise ValueError(
            f"`output_dir` `{folder}` is not empty (it has `{sorted(others)[0]}`). Name another folder or set "
            "`overwrite_output_dir`."
        )


def _check_replaceable(folder: Path) -> None:
    """A finished folder is renamed to its place, so that must be no mount point, in a folder that can be written to."""
    place = folder.resolve()
    if os.path.ismount(place):
        raise ValueError(f"`output_dir` `{folder}` is a mount point, which cannot be replaced. Name a folder inside it.")
    above = next(parent for parent in place.parents if os.path.exists(parent))
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        what = "is not writable" if above.is_dir() else "is a file"
        raise ValueError(f"`output_dir` `{folder}` cannot be made: `{above}` {what}. Name a folder elsewhere.")


def check_generation_options(model: PreTrainedModel) -> None:
    """Checks that the model's `generation_config` can be loaded again.

    Raises:
        ValueError: it cannot; says why.
    """
    if not model.can_generate():
        return
    try:
        model.generation_config.validate()
    except ValueError as error:
        reason = in_a_line(error).rstrip(".")
        raise ValueError(f"The model's `generation_config` cannot be saved: {reason}. Mend it in the model.") from None


def save_folder(
    folder: str | Path,
    model: PreTrainedModel,
    processing_class: Any,
    *,
    state: TrainerState,
    output: PruningOutput | None,
    overwrite: bool = False,
    self_check: bool = True,
    card_name: str | None = None,
) -> None:
    """Saves everything into a neighbouring folder, checks it, and renames it to its place.

    A README.md that lies in the folder is brought up to date, not overwritten. A folder that fails its self-check stays as
    `<folder>.partial`.

    Args:
        card_name: what the card calls the model; None for the folder's name.

    Raises:
        ValueError: see `check_output_dir`.
        RuntimeError: the self-check failed; says where the model is kept.
    """
    folder = Path(folder).resolve()  # a link stays, and what it leads to is replaced
    check_output_dir(folder, overwrite, getattr(model.config, "_name_or_path", None))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _save_pretrained(model, temporary)
        if processing_class is not None:
            processing_class.save_pretrained(temporary)
        state.save_to_json(str(temporary / STATE))
        if output is not None:
            output.plan.save(temporary / PLAN)
        checked = _self_check(temporary, model, folder) if self_check else None
        if output is not None:
            output.report.self_check = checked
            output.report.files = file_digests(temporary)
            output.report.size_on_disk = sum(path.stat().st_size for path in temporary.glob("*.safetensors"))
            (temporary / REPORT).write_text(output.report.to_json(), encoding="utf-8")
            if output.scores:
                scores = scores_to_json(output.scores, output.plan.criterion)
                (temporary / SCORES_FILE).write_text(scores, encoding="utf-8")
            _write_report(temporary)
            write_card(temporary, card_name or folder.name, existing=readme_text(folder))
        temporary.chmod(0o777 & ~_umask())
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """`model.save_pretrained`, also with options of generation that it refuses because they have no effect together."""
    options: Any = getattr(model, "generation_config", None)
    if not model.can_generate() or _is_valid(options):
        model.save_pretrained(folder)
        return
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = options
    # Written as they are: loading takes them, and a published model may well have, say, a temperature but no sampling.
    options.to_json_file(folder / GENERATION_CONFIG_NAME, use_diff=True, keys_to_pop=["compile_config"])


def _is_valid(options: GenerationConfig) -> bool:
    try:
        options.validate(strict=True)
    except ValueError:
        return False
    return True


def _self_check(temporary: Path, model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """`check_in_fresh_process`; what fails is kept beside its place, because a whole run may have led to it."""
    try:
        return check_in_fresh_process(temporary, model)
    except Exception as error:  # whatever the model's own code raises
        endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        places = (folder.with_name(f"{folder.name}.partial{ending}") for ending in endings)
        kept = next(place for place in places if not os.path.lexists(place))
        temporary.chmod(0o777 & ~_umask())
        temporary.replace(kept)
        reason = in_a_line(error).rstrip(".")
        raise RuntimeError(
            f"Self-check failed: {reason}. `{folder}` was not written; the model that did not pass is kept in `{kept}`."
        ) from error


def _write_report(folder: Path) -> None:
    try:
        write_report(folder)
    except ValueError as error:  # no page is worth the loss of a model
        logger.warning(f"The report page was not written. {error}")


def _umask() -> int:
    # The only way to read it is to set it; mkdtemp makes private folders, which users do not expect of a model.
    value = os.umask(0)
    os.umask(value)
    return value


def _publish(temporary: Path, folder: Path) -> None:
    """Puts the finished folder in its place; the logs of a run that lie there stay, its checkpoints go."""
    if folder.exists():
        if (folder / "runs").is_dir():
            shutil.move(str(folder / "runs"), str(temporary / "runs"))
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        folder.replace(old)
        temporary.replace(folder)
        shutil.rmtree(old)
    else:
        temporary.replace(folder)
