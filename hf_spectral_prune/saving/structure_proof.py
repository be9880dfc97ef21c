"""Proves of a model that is known by structure only, before any work, that removing its units does what masking them does."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models.cria.channels import narrow
from ..models.families import family_of, unit_groups
from ..models.losses import moved_to
from ..surgery.cut import write_layer_fields
from ..surgery.mask import masked
from ..surgery.narrow import narrowings
from ..utils.words import first_line
from .reload import TOLERANCE, first_output, probe_inputs, stand_in


@torch.no_grad()
def check_structure(model: PreTrainedModel, batch: Mapping[str, Tensor] | None = None) -> None:
    """Cuts half of the units, drawn at random, in a copy of the FFN weights alone, and compares it with the model with a mask.

    The class that will load the result is built from the config as a cut writes it. Models that a table knows are not tried.

    Args:
        batch: of the calibration rows; without any, random ids are taken.

    Raises:
        ValueError: that class does not hold the weights, computes something else, or has another number of parameters.
    """
    if not family_of(model.config).by_structure:
        return
    groups = unit_groups(model)
    generator = torch.Generator().manual_seed(0)
    kept = {
        group.key: torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)].sort().values for group in groups
    }
    state = dict(model.state_dict())
    names = {module: name for name, module in model.named_modules()}
    for module, outputs, inputs in narrowings(model, groups, kept):
        cut = copy.deepcopy(module)
        narrow(cut, outputs, inputs)
        state |= {f"{names[module]}.{name}": value for name, value in cut.state_dict().items()}
    config = copy.deepcopy(model.config)
    (row,) = family_of(config).kinds
    write_layer_fields(config, {group.layer: {row.size_field: len(kept[group.key])} for group in groups})
    try:
        removed = stand_in(model, config, state)
    except ValueError as error:
        raise _refusal(model, f"the class that loads the result does not hold it ({first_line(error)})") from None
    wanted = model.num_parameters() - sum((group.size - len(kept[group.key])) * group.parameters_per_unit for group in groups)
    if removed.num_parameters() != wanted:
        raise _refusal(model, f"half of its units leave {removed.num_parameters()} parameters and not {wanted}")
    rows = probe_inputs(model) if batch is None else {name: value for name, value in batch.items() if name != "labels"}
    rows = moved_to(model, rows)
    try:
        dense = first_output(model, rows)
        with masked(model, kept):
            expected = first_output(model, rows)
        found = first_output(removed, rows)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a class makes of rows that it was not written for
        raise _refusal(model, f"it does not run on the calibration rows ({first_line(error)})") from None
    finite = dense.isfinite() & expected.isfinite()  # rows of nothing but padding may not be
    dense, expected, found = dense[finite], expected[finite], found[finite]
    allowed = TOLERANCE.get(model.dtype, 1e-5) * max(1.0, float(expected.abs().max())) if len(expected) else 0.0
    if not len(expected) or not float((dense - expected).abs().max()) > allowed:
        raise _refusal(model, "masking half of its units changes nothing of its output")
    if not float((found - expected).abs().max()) <= allowed:
        raise _refusal(model, "removing units computes something else than masking them")


def _refusal(model: PreTrainedModel, reason: str) -> ValueError:
    return ValueError(
        f"`{model.config.model_type}` has no table and is known by structure only, and that does not prove itself: {reason}. Add "
        "a table for it in hf_spectral_prune/models/families/ or choose another model."
    )
