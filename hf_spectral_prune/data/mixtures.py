"""Calibration on several texts at once: each gives its share of the rows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..utils.types import Row
from ..utils.words import did_you_mean, listed
from .rows import training_rows
from .texts import CalibrationData, batches_of, build_calibration, unpadded_row, with_sizes

# Sources that `mixture_of` takes by a short name: data set and configuration on the Hub; read as streams, for C4 has 300 GB.
KNOWN_TEXTS = {"c4": ("allenai/c4", "en"), "wiki": ("Salesforce/wikitext", "wikitext-103-raw-v1")}
# Sources that the command line makes itself.
_OWN = ("dataset", "self", "python_docs")


def mixture_of(text: str) -> dict[str, float]:
    """{source: weight} of a source alone (`self`) or of several with weights (`c4:0.5,wiki:0.3,notes.jsonl:0.2`).

    A source is `dataset` (the file or data set that other options name), `self`, `python_docs`, one of `KNOWN_TEXTS`, a file, a
    folder of data, or a data set on the Hub (`OWNER/NAME`).

    Raises:
        ValueError: a source that is none of these or is named twice, or a weight that is missing or no positive number.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and ":" not in text:
        _check_source(text)
        return {text: 1.0}
    weights: dict[str, float] = {}
    for part in parts:
        name, _, weight = part.rpartition(":")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"`calibration` has the part `{part}`. Give every part a weight above 0, as in `c4:0.5,wiki:0.3,self:0.2`."
            )
        if name in weights:
            raise ValueError(f"`calibration` names `{name}` twice. Give it once, with one weight.")
        _check_source(name)
        weights[name] = value
    return weights


def _check_source(name: str) -> None:
    short = (*_OWN, *KNOWN_TEXTS)
    if name in short or "/" in name or os.path.exists(name):
        return
    words = listed(short)
    raise ValueError(
        f"`calibration` names `{name}`, which is no file here.{did_you_mean(name, short)} Choose from {words}, or give a file, "
        "or a data set on the Hub as `OWNER/NAME`; several with weights, as in `c4:0.5,self:0.5`."
    )


def build_mixture(
    sources: Mapping[str, tuple[Iterable[object], float]],
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    num_samples: int = 128,
    batch_size: int = 8,
    seed: int = 42,
    **options: Any,
) -> CalibrationData:
    """Rows of several sources in shuffled batches, as many of each as its weight says.

    Args:
        sources: {name: (source, weight)}: a source as `build_calibration` takes it, or `CalibrationData` (rows that the model has
            written itself, say), of which rows are drawn at random. Weights above 0; their sum is taken for the whole.
        options: further keywords of `build_calibration`, the same for all.

    Raises:
        ValueError: a weight that cannot be, or too small for a single row; or see `build_calibration`.
    """
    numbers = rows_by_weight({name: weight for name, (_, weight) in sources.items()}, num_samples)
    parts = {}
    for name, (source, _) in sources.items():
        if isinstance(source, CalibrationData):
            parts[name] = _some(source, numbers[name], seed)
        else:
            parts[name] = build_calibration(
                source, processing_class, num_samples=numbers[name], batch_size=batch_size, seed=seed, name=name, **options
            )
    return mixed(parts, processing_class, batch_size=batch_size, seed=seed)


def mixed(
    parts: Mapping[str, CalibrationData],
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    batch_size: int = 8,
    seed: int = 42,
) -> CalibrationData:
    """All rows of the parts in one random order, so that every stretch of it is a mix too."""
    rows = [row for part in parts.values() for row in _rows_of(part)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    protocol = {
        "source": ", ".join(f"{name} ({part.num_sequences} rows)" for name, part in parts.items()),
        "parts": {name: part.protocol for name, part in parts.items()},
        "max_seq_length": max(part.protocol.get("max_seq_length") or 0 for part in parts.values()),
        "num_texts": _sum_of(part.protocol.get("num_texts") for part in parts.values()),
        "shuffle": True,
        "seed": seed,
    }
    return with_sizes(batches_of([rows[index] for index in order], batch_size, processing_class), protocol)


def _sum_of(values: Iterable[int | None]) -> int | None:
    """The sum, or None where one is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def rows_by_weight(weights: Mapping[str, float], number: int) -> dict[str, int]:
    """{name: rows}, `number` together: every name's share rounded down, and what is left by the largest remainders.

    Raises:
        ValueError: a weight that is no positive number, or that gives no row.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"The weight of `{name}` is {weight}; it must be a finite number above 0.")
    total = sum(weights.values())
    exact = {name: number * weight / total for name, weight in weights.items()}
    rows = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: rows[name] - exact[name])
    for name in by_rest[: number - sum(rows.values())]:
        rows[name] += 1
    empty = next((name for name, count in rows.items() if count == 0), None)
    if empty is not None:
        raise ValueError(
            f"The weight of `{empty}` ({weights[empty]:g} of {total:g}) gives none of {number} rows. Raise the weight or the "
            "number of samples, or leave it out."
        )
    return rows


def _some(data: CalibrationData, number: int, seed: int) -> CalibrationData:
    """Rows drawn at random, in their order; all where there are no more."""
    rows = _rows_of(data)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return with_sizes(batches_of([rows[index] for index in sorted(order[:number])], len(rows)), {**data.protocol})


def _rows_of(data: CalibrationData) -> list[Row]:
    return [unpadded_row(row) for row in training_rows(data)]
