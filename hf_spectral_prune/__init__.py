"""hf_spectral_prune: structured pruning for Hugging Face models. Importing it registers the Cria classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .utils.interrupts import answer_while_starting

answer_while_starting()

from .models import integrations  # noqa: E402 - after the above, because importing takes a while
from .utils.lazy import lazily  # noqa: E402

if TYPE_CHECKING:
    from .arguments import SpectralPruningArguments
    from .criteria import CRITERIA, Criterion, GroupData, make_criterion, register
    from .data.generated import self_generated
    from .data.images import build_images, load_images
    from .data.sources import default_texts, load_texts
    from .data.texts import CalibrationData, build_calibration
    from .evaluation.figures import latency, num_parameters, paired_latency, perplexity
    from .evaluation.metrics import load_metric
    from .pruner import SpectralPruner
    from .recovery.arguments import RecoveryArguments
    from .recovery.recover import RecoveryOutput, recover
    from .saving.output import PruningOutput
    from .studies.comparison import Comparison, ComparisonArguments, compare
    from .studies.detrimental import DetrimentalArguments, DetrimentalNeuronPruner, Example, examples_from_rows, read_examples
    from .studies.differentiation import (
        NDIRegularizedTrainerMixin,
        NDITrackingCallback,
        NDPArguments,
        NDPCallback,
        ndi_regularizer,
    )
    from .studies.targets import prune_to_targets
    from .surgery import apply_plan, masked, settle_class
    from .surgery.plan import PruningPlan
    from .trainer.pruning import SpectralPruningCallback
    from .trainer.schedule import PruningSchedule
    from .trainer.scoring import ScoreTrackingCallback

__version__ = "0.1.0"

integrations.register()

_PUBLIC = {
    "arguments": ["SpectralPruningArguments"],
    "trainer.pruning": ["SpectralPruningCallback"],
    "data.generated": ["self_generated"],
    "data.images": ["build_images", "load_images"],
    "data.sources": ["default_texts", "load_texts"],
    "data.texts": ["CalibrationData", "build_calibration"],
    "studies.comparison": ["Comparison", "ComparisonArguments", "compare"],
    "criteria": ["CRITERIA", "Criterion", "GroupData", "make_criterion", "register"],
    "studies.detrimental": [
        "DetrimentalArguments",
        "DetrimentalNeuronPruner",
        "Example",
        "examples_from_rows",
        "read_examples",
    ],
    "studies.differentiation": [
        "NDIRegularizedTrainerMixin",
        "NDITrackingCallback",
        "NDPArguments",
        "NDPCallback",
        "ndi_regularizer",
    ],
    "studies.targets": ["prune_to_targets"],
    "evaluation.figures": ["latency", "num_parameters", "paired_latency", "perplexity"],
    "evaluation.metrics": ["load_metric"],
    "surgery.plan": ["PruningPlan"],
    "saving.output": ["PruningOutput"],
    "pruner": ["SpectralPruner"],
    "recovery.arguments": ["RecoveryArguments"],
    "recovery.recover": ["RecoveryOutput", "recover"],
    "trainer.schedule": ["PruningSchedule"],
    "trainer.scoring": ["ScoreTrackingCallback"],
    "surgery": ["apply_plan", "masked", "settle_class"],
}
_names, __getattr__, __dir__ = lazily(__name__, _PUBLIC)

__all__ = [*_names, "__version__"]
