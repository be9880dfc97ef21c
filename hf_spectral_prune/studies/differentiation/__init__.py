"""Neural differentiation during training: NDI tracked, units removed by it, and a regulariser that asks for diversity."""

from .pruning import NDPArguments, NDPCallback
from .regularizer import NDIRegularizedTrainerMixin, model_regularizer, ndi_regularizer, unit_signals
from .tracking import CURVES_FILE, GroupIndex, NDITrackingCallback, measure_ndi

__all__ = [
    "CURVES_FILE",
    "GroupIndex",
    "NDIRegularizedTrainerMixin",
    "NDITrackingCallback",
    "NDPArguments",
    "NDPCallback",
    "measure_ndi",
    "model_regularizer",
    "ndi_regularizer",
    "unit_signals",
]
