"""hf_spectral_prune: structured pruning for Hugging Face models. Importing it registers the Cria classes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import modeling
from .integrations import register_with_peft

if TYPE_CHECKING:
    from .arguments import SpectralPruningArguments
    from .calibration import (
        CalibrationData,
        build_calibration,
        build_images,
        default_texts,
        load_images,
        load_texts,
        self_generated,
    )
    from .callbacks import SpectralPruningCallback
    from .comparison import Comparison, ComparisonArguments, compare
    from .criteria import CRITERIA, Criterion, GroupData, make_criterion, register
    from .detrimental import DetrimentalArguments, DetrimentalNeuronPruner, Example, examples_from_rows, read_examples
    from .differentiation import NDIRegularizedTrainerMixin, NDITrackingCallback, NDPArguments, NDPCallback, ndi_regularizer
    from .evaluation import latency, num_parameters, paired_latency, perplexity
    from .metrics import load_metric
    from .output import PruningOutput
    from .planning import PruningPlan
    from .pruner import SpectralPruner
    from .recovery import RecoveryArguments, RecoveryOutput, recover
    from .schedule import PruningSchedule
    from .score_tracking import ScoreTrackingCallback
    from .surgery import apply_plan, masked, settle_class

__version__ = "0.1.0"

register_with_peft()

_PUBLIC = {
    "arguments": ["SpectralPruningArguments"],
    "callbacks": ["SpectralPruningCallback"],
    "calibration": [
        "CalibrationData",
        "build_calibration",
        "build_images",
        "default_texts",
        "load_images",
        "load_texts",
        "self_generated",
    ],
    "comparison": ["Comparison", "ComparisonArguments", "compare"],
    "criteria": ["CRITERIA", "Criterion", "GroupData", "make_criterion", "register"],
    "detrimental": [
        "DetrimentalArguments",
        "DetrimentalNeuronPruner",
        "Example",
        "examples_from_rows",
        "read_examples",
    ],
    "differentiation": [
        "NDIRegularizedTrainerMixin",
        "NDITrackingCallback",
        "NDPArguments",
        "NDPCallback",
        "ndi_regularizer",
    ],
    "evaluation": ["latency", "num_parameters", "paired_latency", "perplexity"],
    "metrics": ["load_metric"],
    "planning": ["PruningPlan"],
    "output": ["PruningOutput"],
    "pruner": ["SpectralPruner"],
    "recovery": ["RecoveryArguments", "RecoveryOutput", "recover"],
    "schedule": ["PruningSchedule"],
    "score_tracking": ["ScoreTrackingCallback"],
    "surgery": ["apply_plan", "masked", "settle_class"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module `hf_spectral_prune` has no attribute `{name}`")


def __dir__() -> list[str]:
    return __all__
