"""Gives batch norms the statistics of the network as it is after a cut."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from ..data.texts import CalibrationData
from ..models.losses import Batch, moved_to, num_rows
from ..models.modes import evaluating


def has_batch_norms(model: nn.Module) -> bool:
    """Whether the model keeps running statistics."""
    return bool(_tracking(model))


@torch.no_grad()
def recalibrate_norms(model: PreTrainedModel, batches: Iterable[Batch]) -> None:
    """Estimates the running statistics of all batch norms anew, in place: the mean over batches of each batch's.

    Every norm normalises with the batch's own statistics meanwhile, so that later ones see what earlier ones will give. The
    rest of the model is in evaluation mode; weights do not change. Batches of one row are left out: they have no variance.
    """
    norms = _tracking(model)
    held = [(norm, norm.momentum) for norm in norms]
    usable = [batch for batch in batches if num_rows(batch) > 1]
    if not norms or not usable:
        return
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over the batches
                norm.train()
            for batch in usable:
                model(**moved_to(model, {name: value for name, value in batch.items() if name != "labels"}))
    finally:
        for norm, momentum in held:
            norm.momentum = momentum


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def norm_notes(model: PreTrainedModel, calibration: CalibrationData | None) -> list[str]:
    """What the user should know of batch norms: whose statistics they have after a cut."""
    if not has_batch_norms(model):
        return []
    if calibration is None:
        return ["There is no calibration data, so the batch norms keep the statistics of the dense network."]
    return [
        f"After every cut the batch norms' statistics were computed again from {calibration.num_sequences} calibration images."
    ]
