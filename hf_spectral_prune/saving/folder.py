"""Writes the output folder whole or not at all, and proves it by reloading it in a fresh process."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, TrainerState
from transformers.utils import GENERATION_CONFIG_NAME, logging

from ..models.families import layers_of
from ..models.offload import is_offloaded
from ..planning import SCORES_FILE, scores_to_json
from ..publishing.card.write import readme_text, write_card
from ..publishing.report.write import write_report
from ..publishing.saved_folder import PLAN, REPORT, STATE, file_digests
from ..utils.files import SMALL_FILES, check_room, num_bytes, room_told
from ..utils.option_values import published
from ..utils.types import Json, ProcessingClass
from ..utils.words import in_a_line, one_line
from .carried import carry_over
from .output import PruningOutput
from .place import check_output_dir, keep_beside, make_public, names_in, reserved, take_place
from .reload import check_in_fresh_process

logger = logging.get_logger(__name__)


def check_config(model: PreTrainedModel) -> None:
    """Checks that the model's config can be written.

    Raises:
        ValueError: a field holds what JSON cannot (names it).
    """
    try:
        model.config.to_json_string()
    except Exception as error:  # of json, and of whatever a field holds
        fields = {name: value for name, value in vars(model.config).items() if not _is_json(value)}
        which = ", ".join(f"`{name}` (`{type(value).__name__}`)" for name, value in fields.items()) or one_line(error)
        raise ValueError(
            f"The model's config cannot be saved, as JSON cannot hold {which}. Make it plain numbers, text or lists."
        ) from None


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return isinstance(value, (torch.dtype, PreTrainedConfig))  # which transformers writes in words of its own
    return True


def check_generation_options(model: PreTrainedModel) -> None:
    """Checks that the model's `generation_config` can be loaded again.

    Raises:
        ValueError: it cannot; says why.
    """
    if not model.can_generate():
        return
    try:
        model.generation_config.to_json_string()
        model.generation_config.validate()
    except (ValueError, TypeError) as error:
        reason = in_a_line(error)
        raise ValueError(f"The model's `generation_config` cannot be saved: {reason}. Mend it in the model.") from None


def save_folder(
    folder: str | Path,
    model: PreTrainedModel,
    processing_class: ProcessingClass | None,
    *,
    state: TrainerState,
    output: PruningOutput | None,
    overwrite: bool = False,
    self_check: bool = True,
    card_name: str | None = None,
    source: str | None = None,
    replaced: Collection[str] | None = None,
) -> None:
    """Saves everything into a neighbouring folder, checks it, and renames it to its place.

    A README.md that lies in the folder is brought up to date, not overwritten. A folder that fails its self-check stays as
    `<folder>.partial`, and one whose place was taken meanwhile as `<folder>.finished`.

    Args:
        card_name: what the card calls the model; None for the folder's name.
        source: folder or name of the model that was pruned, from which is carried over what lies beside it.
        replaced: names in the folder that may go, as they were when its place was reserved (`names_in`); None checks it now.

    Raises:
        ValueError: see `check_output_dir` and `reserved`.
        OSError: there is no room on the disk; says how much is needed.
        RuntimeError: the self-check failed, or the place was taken; says where the model is kept.
    """
    folder = Path(folder).resolve()  # a link stays, and what it leads to is replaced
    with reserved(folder):
        if replaced is None:
            check_output_dir(folder, overwrite, source)
            replaced = names_in(folder)
        needed = num_bytes(model) + SMALL_FILES
        check_room("The pruned model", folder.parent, needed)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            with room_told("The pruned model", folder.parent, needed):
                _write_model(temporary, model, processing_class, source)
                shown = copy.copy(state)
                shown.best_model_checkpoint = published(state.best_model_checkpoint)
                shown.save_to_json(str(temporary / STATE))
                if output is not None:
                    output.plan.save(temporary / PLAN)
                checked = _self_check(temporary, model, folder) if self_check else None
                if output is not None:
                    _write_figures(temporary, output, checked)
                    _write_report(temporary)
                    _write_card(temporary, card_name or folder.name, folder)
            make_public(temporary)
            take_place(temporary, folder, replaced)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_model(folder: Path, model: PreTrainedModel, processing_class: ProcessingClass | None, source: str | None) -> None:
    _save_pretrained(model, folder)
    if processing_class is not None:
        processing_class.save_pretrained(folder)
    carry_over(source, getattr(model.config, "_commit_hash", None), folder)


def _write_figures(folder: Path, output: PruningOutput, checked: Json | None) -> None:
    """The report and the scores; the report has the digests of what was checked, and the names of all that is the model's."""
    report = output.report
    report.self_check = checked
    report.files = file_digests(folder)
    report.written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    report.size_on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    if output.scores:
        (folder / SCORES_FILE).write_text(scores_to_json(output.scores, output.plan.criterion), encoding="utf-8")


def _save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """`model.save_pretrained`, also with options of generation that it refuses because they have no effect together."""
    options: Any = getattr(model, "generation_config", None)
    # What lies on the disk is brought to memory shard by shard; else as `save_pretrained` would.
    size = max(map(num_bytes, layers_of(model))) if is_offloaded(model) else "50GB"
    if not model.can_generate() or _is_valid(options):
        model.save_pretrained(folder, max_shard_size=size)
        return
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, max_shard_size=size)
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


def _self_check(temporary: Path, model: PreTrainedModel, folder: Path) -> Json:
    """`check_in_fresh_process`; what fails is kept beside its place, because a whole run may have led to it."""
    try:
        return check_in_fresh_process(temporary, model)
    except Exception as error:  # whatever the model's own code raises
        kept = keep_beside(temporary, folder, "partial")
        reason = in_a_line(error)
        raise RuntimeError(
            f"Self-check failed: {reason}. `{folder}` was not written; the model that did not pass is kept in `{kept}`."
        ) from error


def _write_report(folder: Path) -> None:
    try:
        write_report(folder)
    except Exception as error:  # no page is worth the loss of a model
        logger.warning(f"The report page was not written. {one_line(error)}")


def _write_card(temporary: Path, name: str, folder: Path) -> None:
    try:
        write_card(temporary, name, existing=readme_text(folder))
    except Exception as error:  # as little; a README.md that came meanwhile and cannot be read goes along as it is
        logger.warning(f"The card was not written. {one_line(error)}")
