"""What the plan of a run depends on: its options, its data, the model's type, the code. A resumed run must have the same."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..criteria import Criterion
from ..data.texts import CalibrationData
from ..utils.digests import data_digest
from ..utils.environment import library_versions
from ..utils.types import Json

# Options that decide which units a run removes, and what it makes of the weights that stay.
_DECIDING = (
    "target_reduction",
    "target_bytes",
    "target_context",
    "target_tokens_per_second",
    "target_scope",
    "units",
    "layout",
    "uniform_heads",
    "criterion",
    "criterion_args",
    "allocation",
    "rank_by",
    "num_allocation_samples",
    "num_rounds",
    "reallocate",
    "recalibrate_every",
    "compensation",
    "ridge",
    "round_to",
    "min_ffn_units",
    "min_kv_groups",
    "min_channels",
    "stock_class",
    "seed",
)
# Where the code lies that decides about a plan, in this package.
_PACKAGE = Path(__file__).parents[1]
_ROOMS = ("spectral", "models", "calibration", "criteria", "planning", "surgery")


def deciding_options(
    args: SpectralPruningArguments, model: PreTrainedModel, criterion: Criterion, calibration: CalibrationData | None
) -> Json:
    """{name: value} of all that decides about the plan of a run, as JSON gives it back.

    Beside the options: `calibration_dataset` (its source, sizes and content), `dtype` of the weights, and `code` (the
    package's version and content, and the criterion's where it comes from elsewhere).
    """
    options: Json = json.loads(json.dumps({name: getattr(args, name) for name in _DECIDING}))
    options["calibration_dataset"] = None if calibration is None else _data_in_words(calibration)
    options["dtype"] = str(model.dtype).removeprefix("torch.")
    options["code"] = f"{library_versions()['hf_spectral_prune']} ({_code_digest(type(criterion))})"
    return options


def check_same_run(before: Json | None, now: Json, where: str) -> None:
    """Checks that a run goes on with what it began with.

    Args:
        before: `deciding_options` of the run so far; None, or without a name, for a checkpoint of before it was kept.
        now: those of the run that resumes it.
        where: what the message calls the checkpoint.

    Raises:
        ValueError: one differs; names it and both values.
    """
    for name, value in now.items():
        old = (before or {}).get(name, value)
        if old != value:
            raise ValueError(
                f"`{name}` is {value!r}, but the run of {where} began with {old!r}, and its plan depends on it. Use "
                "the old value, or begin anew without `resume_from_checkpoint`."
            )


def _data_in_words(data: CalibrationData) -> str:
    protocol = data.protocol
    words = f"{protocol['source']}: {data.num_sequences} rows, {data.num_tokens} tokens"
    # What a model writes itself may differ in a token on an accelerator, whose sums are not always the same.
    generated = protocol.get("temperature") is not None
    content = json.dumps(protocol, sort_keys=True, default=str) if generated else data_digest(data.batches)
    return f"{words}, {content}"


def _code_digest(criterion: type[Criterion]) -> str:
    return _digest_of(tuple(_deciding_files(criterion)))


@cache
def _digest_of(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _deciding_files(criterion: type[Criterion]) -> Iterator[Path]:
    yield _PACKAGE / "rounds.py"
    for room in _ROOMS:
        yield from sorted((_PACKAGE / room).rglob("*.py"))
    if not criterion.__module__.startswith(f"{_PACKAGE.name}."):
        try:
            yield Path(inspect.getfile(criterion))
        except (OSError, TypeError):  # made at a prompt
            return
