"""Names for types that many modules share. Nothing is imported for them at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        BaseImageProcessor,
        EvalPrediction,
        FeatureExtractionMixin,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

# An object of JSON: what is read from a file, or written to one.
Json = dict[str, Any]
# Keywords of a call, collected before it.
Options = dict[str, Any]
# A row of a data set: {column: value}.
Row = dict[str, Any]

# What Trainer takes by these names.
ProcessingClass: TypeAlias = "PreTrainedTokenizerBase | BaseImageProcessor | FeatureExtractionMixin | ProcessorMixin"
Collator = Callable[[list[Any]], dict[str, Any]]
Metrics: TypeAlias = "Callable[[EvalPrediction], dict[str, float]]"
Preprocess = Callable[[Any, Any], Any]
LossFunction: TypeAlias = "Callable[..., Tensor]"
