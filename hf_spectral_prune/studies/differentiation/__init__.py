"""Neural differentiation during training: NDI tracked, units removed by it, and a regulariser that asks for diversity."""

from typing import TYPE_CHECKING

from ...utils.lazy import lazily

if TYPE_CHECKING:
    from .pruning import NDPArguments, NDPCallback
    from .regularizer import NDIRegularizedTrainerMixin, model_regularizer, ndi_regularizer, unit_signals
    from .tracking import CURVES_FILE, GroupIndex, NDITrackingCallback, measure_ndi

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "pruning": ["NDPArguments", "NDPCallback"],
        "regularizer": ["NDIRegularizedTrainerMixin", "model_regularizer", "ndi_regularizer", "unit_signals"],
        "tracking": ["CURVES_FILE", "GroupIndex", "NDITrackingCallback", "measure_ndi"],
    },
)
