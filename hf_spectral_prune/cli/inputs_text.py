"""Raw text that a command names: to calibrate on, to measure on and to recover on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.for_model import check_ids
from ..data.generated import self_generated
from ..data.items import described
from ..data.mixtures import KNOWN_TEXTS, mixed, mixture_of, rows_by_weight
from ..data.named_files import check_text_file
from ..data.rows import training_rows
from ..data.sources import default_texts, load_texts
from ..data.texts import CalibrationData, build_calibration, unpadded_row
from ..models.families import max_tokens
from ..models.families.groups import is_audio
from ..models.losses import predicts_next_token
from ..utils.types import Options, Row
from .arguments import DataArguments

# A file, or a data set with its configuration and split.
Source = tuple[str | None, str | None, str | None, str]


def check_named_files(data_args: DataArguments) -> None:
    """Checks the files of text that options name, before a model is loaded.

    Raises:
        FileNotFoundError, ValueError: one is missing, is no file of text, or would not be read; names the option. Or see
            `mixture_of`.
    """
    for setting in ("calibration_file", "eval_file", "recovery_file"):
        check_text_file(getattr(data_args, setting), setting)
    sources = mixture_of(data_args.calibration)
    for source in sources:
        if Path(source).is_file():
            check_text_file(source, "calibration")
    for setting in ("calibration_file", "recovery_file"):
        file = getattr(data_args, setting)
        if file and data_args.eval_file and os.path.samefile(file, data_args.eval_file):
            raise ValueError(
                f"`{setting}` and `eval_file` are both `{file}`, so the model would be measured on text that it was made with. "
                "Name another file, or leave `eval_file` out."
            )
    option = "calibration_file" if data_args.calibration_file else "dataset_name"
    if (named := getattr(data_args, option)) and "dataset" not in sources and data_args.eval_split is None:
        raise ValueError(
            f"`calibration` is `{data_args.calibration}`, so `{option}` `{named}` would not be read. Leave one "
            "of them out, or give both a share of the rows, as in `--calibration dataset:0.5,self:0.5`."
        )


def check_source(data_args: DataArguments) -> dict[str, float]:
    """{source of calibration text: its weight}.

    Raises:
        ValueError: nothing to calibrate on is named; or see `mixture_of`.
    """
    weights = mixture_of(data_args.calibration)
    if "dataset" in weights and not data_args.calibration_file and not data_args.dataset_name:
        raise ValueError(
            "There is nothing to calibrate on. Set `calibration_file` or `dataset_name`, or `calibration` to `self` or "
            "`python_docs`."
        )
    return weights


def load_text(
    data_args: DataArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[CalibrationData, CalibrationData | None]:
    """Calibration and held-out evaluation data, whose token ids the model's embedding has; see `_load_text`."""
    check_reads_text(model)
    calibration, held_out = _load_text(data_args, model, tokenizer, seed)
    for data in filter(None, (calibration, held_out)):
        check_ids(model, data, tokenizer)
    return calibration, held_out


def _load_text(
    data_args: DataArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[CalibrationData, CalibrationData | None]:
    """Calibration and held-out evaluation data.

    Without `eval_file` and `eval_split`, the last blocks of the calibration source are held out for evaluation; for the Python
    manual, the held-out topics are.

    Raises:
        ValueError: nothing to calibrate on is named, or the text is too short.
    """
    weights = check_source(data_args)
    held_out = load_held_out_text(data_args, model, tokenizer, seed)
    extra = 0 if held_out is not None else _num_eval(data_args, model)
    numbers = rows_by_weight(weights, data_args.num_calibration_samples)
    measured = {name: weight for name, weight in weights.items() if name != "self"}
    extras = {name: max(1, round(extra * weight / sum(measured.values()))) for name, weight in measured.items() if extra}
    parts = {
        name: _part(data_args, model, tokenizer, seed, name, number, extras.get(name, 0)) for name, number in numbers.items()
    }
    # Reports are published: they name files without their folders, where that tells them apart.
    short = {name: Path(name).name if Path(name).exists() else name for name in parts}
    parts = {short[name] if list(short.values()).count(short[name]) == 1 else name: part for name, part in parts.items()}
    others = {name: kept for name, (_, kept) in parts.items() if kept is not None}
    calibration = _joined(data_args, tokenizer, seed, {name: part for name, (part, _) in parts.items()})
    return calibration, _joined(data_args, tokenizer, seed, others) if others else held_out


def _joined(
    data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int, parts: dict[str, CalibrationData]
) -> CalibrationData:
    if len(parts) == 1:
        return next(iter(parts.values()))
    return mixed(parts, tokenizer, batch_size=data_args.calibration_batch_size, seed=seed)


def _part(
    data_args: DataArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    part: str,
    number: int,
    extra: int,
) -> tuple[CalibrationData, CalibrationData | None]:
    """`number` rows of one source of calibration text, and at most `extra` others of it to measure on."""
    shape = shape_of(data_args, model, seed)
    if part == "self":
        del shape["max_position_embeddings"]
        return self_generated(model, tokenizer, num_samples=number, **shape), None
    if part == "python_docs":
        texts, others = default_texts()
        name = "python_docs (pydoc_data.topics)"
        held_out = None
        if extra:
            held_out = build_calibration(others, tokenizer, num_samples=extra, name=f"{name}, held-out topics", **shape)
        return build_calibration(texts, tokenizer, num_samples=number, name=name, **shape), held_out
    source, streaming = _source_of(data_args, part)
    shape |= {"packing": data_args.packing, "text_column": data_args.text_column}
    texts = _texts(data_args, source, tokenizer, streaming=streaming)
    both = build_calibration(texts, tokenizer, num_samples=number + extra, name=source_name(source), **shape)
    return (both, None) if extra == 0 else _hold_out(both, number, extra)


def _source_of(data_args: DataArguments, part: str) -> tuple[Source, bool]:
    """What a source of a mixture is read from, and whether as a stream."""
    if part == "dataset":
        return calibration_source(data_args), data_args.streaming
    if part in KNOWN_TEXTS:
        return (None, *KNOWN_TEXTS[part], "train"), True
    return ((part, None, None, "train") if Path(part).is_file() else (None, part, None, "train")), data_args.streaming


def load_held_out_text(
    data_args: DataArguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> CalibrationData | None:
    """Evaluation data of `eval_file` or `eval_split`; None where neither is named or there is nothing to measure.

    Raises:
        ValueError, FileNotFoundError: they cannot be read, or the text is too short.
    """
    number = _num_eval(data_args, model)
    if not names_eval(data_args) or not number:
        return None
    check_reads_text(model)
    shape = shape_of(data_args, model, seed)
    source = _texts(data_args, eval_source(data_args), tokenizer)
    shape |= {"text_column": data_args.text_column, "packing": data_args.packing, "shuffle": False}
    data = build_calibration(source, tokenizer, num_samples=number, name=eval_name(data_args), **shape)
    check_ids(model, data, tokenizer)
    return data


def shape_of(data_args: DataArguments, model: PreTrainedModel, seed: int) -> Options:
    return {
        "max_seq_length": length_for(data_args, model),
        "batch_size": data_args.calibration_batch_size,
        "seed": seed,
        "max_position_embeddings": max_tokens(model.config),
    }


def check_reads_text(model: PreTrainedModel) -> None:
    """Checks that data of the command line is what a model reads.

    Raises:
        ValueError: it reads sounds.
    """
    if is_audio(model):
        raise ValueError(
            f"A `{model.config.model_type}` reads sounds, which the command line has no data of. In Python, give "
            "`SpectralPruner` rows with `input_features` and `labels` (docs/families.md)."
        )


def length_for(data_args: DataArguments, model: PreTrainedModel) -> int:
    """Tokens of a sequence; a length that nobody asked for is lowered to what the model takes."""
    limit = max_tokens(model.config)
    length = data_args.max_seq_length
    return min(length, limit) if limit is not None and length == DataArguments.max_seq_length else length


def _num_eval(data_args: DataArguments, model: PreTrainedModel) -> int:
    # Perplexity is for causal language models.
    return (data_args.num_eval_samples or 0) if predicts_next_token(model) else 0


def names_eval(data_args: DataArguments) -> bool:
    """Whether a file or split of its own is named to measure on."""
    return data_args.eval_file is not None or data_args.eval_split is not None


def calibration_source(data_args: DataArguments) -> Source:
    return data_args.calibration_file, data_args.dataset_name, data_args.dataset_config_name, data_args.dataset_split


def _texts(
    data_args: DataArguments, source: Source, tokenizer: PreTrainedTokenizerBase, tell: bool = True, streaming: bool | None = None
) -> Any:
    """The texts of a file or data set; says on screen which column they are read from."""
    texts = load_texts(*source, data_args.text_column, data_args.streaming if streaming is None else streaming)
    words = described(texts, tokenizer, data_args.text_column) if tell else None
    if words is not None:
        print(f"{source[0] or source[1]}: {words}", file=sys.stderr)
    return texts


def eval_source(data_args: DataArguments) -> Source:
    if data_args.eval_file is not None:
        return data_args.eval_file, None, None, "train"
    return None, data_args.dataset_name, data_args.dataset_config_name, str(data_args.eval_split)


def eval_name(data_args: DataArguments) -> str:
    return (
        Path(data_args.eval_file).name if data_args.eval_file is not None else f"{data_args.dataset_name}:{data_args.eval_split}"
    )


def source_name(source: Source) -> str:
    file, dataset, _, split = source
    return Path(file).name if file else f"{dataset}:{split}"


def text_recovery_rows(
    data_args: DataArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: CalibrationData | None,
    held_out: CalibrationData | None,
    seed: int,
) -> Sequence[Row]:
    """Sequences to recover on, without those that are held out."""
    parts = _texts_to_recover_on(data_args, tokenizer)
    weights = {name: weight for name, (_, weight) in parts.items()}
    numbers = rows_by_weight(weights, data_args.num_recovery_samples) if parts else {}
    found = [
        build_calibration(
            source,
            tokenizer,
            num_samples=numbers[name],
            packing=data_args.packing,
            text_column=data_args.text_column,
            name=f"{name}, to recover on",
            **shape_of(data_args, model, seed),
        )
        for name, (source, _) in parts.items()
    ]
    # Without padding, whose width is another in every batch.
    if not found:
        assert calibration is not None
        found = [calibration]
    rows = [unpadded_row(row) for data in found for row in training_rows(data)]
    others = [unpadded_row(row) for row in training_rows(held_out)] if held_out is not None else []
    hidden = {tuple(row["input_ids"].tolist()) for row in others}
    return [row for row in rows if tuple(row["input_ids"].tolist()) not in hidden]


def _texts_to_recover_on(
    data_args: DataArguments, tokenizer: PreTrainedTokenizerBase
) -> dict[str, tuple[Iterable[object], float]]:
    """{name: (source, weight)}; none where the model's own text is all there is, which is used as it was written."""
    if data_args.recovery_file is not None:
        return {
            Path(data_args.recovery_file).name: (
                _texts(data_args, (data_args.recovery_file, None, None, "train"), tokenizer),
                1.0,
            )
        }
    parts: dict[str, tuple[Iterable[object], float]] = {}
    for part, weight in mixture_of(data_args.calibration).items():
        if part == "python_docs":
            parts[part] = default_texts()[0], weight
        elif part != "self":
            source, streaming = _source_of(data_args, part)
            # It was told when it was read to calibrate on.
            parts[source_name(source)] = _texts(data_args, source, tokenizer, tell=False, streaming=streaming), weight
    return parts


def _hold_out(data: CalibrationData, wanted: int, extra: int) -> tuple[CalibrationData, CalibrationData | None]:
    """Splits the last blocks off, as far as the text is long enough to spare them (never more than a fifth of it)."""
    spare = min(extra, max(data.num_sequences - wanted, data.num_sequences // 5))
    if spare == 0:
        return data, None
    rows = [
        {name: value[i : i + 1] for name, value in batch.items()}
        for batch in data.batches
        for i in range(len(batch["input_ids"]))
    ]
    parts = []
    for part, what in ((rows[:-spare], ""), (rows[-spare:], ", blocks held out of the calibration")):
        protocol = {**data.protocol, "source": f"{data.protocol['source']}{what}", "num_sequences": len(part)}
        size = len(data.batches[0]["input_ids"])
        batches = tuple(_stack(part[start : start + size]) for start in range(0, len(part), size))
        parts.append(CalibrationData(batches, protocol | {"num_tokens": CalibrationData(batches, {}).num_tokens}))
    return parts[0], parts[1]


def _stack(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    width = max(row["input_ids"].shape[1] for row in rows)
    if any(row["input_ids"].shape[1] != width for row in rows):
        # Rows padded to different lengths: pad on the right with masked positions.
        rows = [{n: torch.nn.functional.pad(v, (0, width - v.shape[1])) for n, v in row.items()} for row in rows]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
