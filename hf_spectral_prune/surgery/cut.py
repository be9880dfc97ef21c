"""Cuts a model as a plan says: slices the weights, rewrites the config, and settles the model's class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..calibration import GroupMoments
from ..calibration.signals import num_signal_channels
from ..models.cria.channels import narrow, weight_of, widths_of
from ..models.families import (
    consumers,
    family_of,
    layer_field,
    layers_of,
    network_of,
    stack_of,
    unit_groups,
)
from ..models.losses import Batch
from ..models.offload import resident, rewritten
from .compensate import bias_correction, least_squares
from .narrow import cut_group, narrowings
from .plan import PruningPlan
from .sequential import cut_sequentially

Compensation = Literal["none", "bias", "least_squares", "sequential"]


def fingerprint(model: PreTrainedModel) -> str:
    """Short digest of a model's weights: a few values of every consumer. Tells a model from its cut or trained self."""
    digest = hashlib.sha256()
    for group in unit_groups(model):
        with resident(model, group.layer):
            for consumer in consumers(model, group):
                weight = weight_of(consumer.module).detach()
                sample = weight.flatten()[:: max(1, weight.numel() // 64)].float().cpu()
                digest.update(f"{group.key}/{tuple(weight.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def check_plan(model: PreTrainedModel, plan: PruningPlan, *, check_weights: bool = True) -> None:
    """Checks that the plan was made for this model as it stands.

    Raises:
        ValueError: the plan was applied already, or was made for another model (says which).
    """
    sizes = {group.key: group.size for group in unit_groups(model)}
    if any(key not in sizes for key in plan.sizes) or plan.model_type not in family_of(model.config).model_types:
        raise ValueError(
            f"The plan was made for another model: a `{plan.model_type}` with {len(plan.sizes)} unit groups, and this is a "
            f"`{model.config.model_type}` with {len(sizes)}. Apply it to the model it was made for."
        )
    counts: dict[tuple[int, str], set[int]] = {}
    for group in unit_groups(model):
        if group.place:
            counts.setdefault((group.layer, group.kind), set()).add(len(plan.kept.get(group.key, range(group.size))))
    if any(len(found) > 1 for found in counts.values()):
        raise ValueError(
            "The plan leaves the experts of a layer different numbers of units, and a config has one for all of them."
        )
    differing = [key for key in plan.sizes if sizes[key] != plan.sizes[key]]
    if differing and all(sizes[key] == len(plan.kept[key]) for key in plan.sizes):
        raise ValueError("The plan was already applied to this model: every group has the size it leaves. Load the model anew.")
    if differing:
        key = differing[0]
        raise ValueError(
            f"The plan was made for another model: it counts {plan.sizes[key]} units in `{key}`, this model has {sizes[key]}. "
            "Apply it to the model it was made for."
        )
    if check_weights and plan.fingerprint not in (None, fingerprint(model)):
        raise ValueError(
            "The plan was made for another model of the same shape: the weights differ. Apply it to the model it was made for, "
            "or pass `check_weights=False` if that is meant (e.g. a fine-tuned copy)."
        )


def check_compensation(model: PreTrainedModel, compensation: Compensation) -> None:
    """Checks that the model's units can be repaired as asked.

    Raises:
        ValueError: they are channels, or the residual stream is not known.
    """
    if compensation != "none" and family_of(model.config).traced:
        raise ValueError(
            f"`compensation` `{compensation}` is for transformers; channels are compensated by the new statistics of their batch "
            'norms. Use `compensation="none"`.'
        )
    family = family_of(model.config)
    if compensation == "sequential" and family.stream_unknown:
        raise ValueError(
            f"`compensation` `sequential` needs the residual stream, which is not known for `{model.config.model_type}`, a model "
            f"{'known by structure' if family.by_structure else 'with experts or an encoder and a decoder'}. Use "
            '`compensation="least_squares"`.'
        )
    if compensation == "bias" and family.stream_unknown and not family.by_structure:
        raise ValueError(
            f"`compensation` `bias` has no place for its biases in a `{model.config.model_type}`. Use "
            '`compensation="least_squares"`.'
        )


@torch.no_grad()
def repairs(
    model: PreTrainedModel,
    kept: Mapping[str, Tensor],
    compensation: Compensation,
    moments: Mapping[str, GroupMoments],
    ridge: float = 1e-2,
) -> dict[str, Tensor]:
    """What the consumers will hold once all groups are cut to the units `kept`: {group key: weight (out, n_kept) or bias (out,)}.

    Worked out for all groups before any is cut, because moments may be collected on demand (`MomentsByPart`).
    """
    if compensation == "none":
        return {}
    found = {}
    for group in unit_groups(model):
        if group.key not in kept or len(kept[group.key]) == group.size:
            continue
        consumer, _, columns = narrowings(model, [group], {group.key: kept[group.key]})[-1]
        assert columns is not None
        after = moments[group.key].after
        if compensation == "least_squares":
            found[group.key] = least_squares(weight_of(consumer), after, columns, ridge).to(consumer.weight)
        else:
            found[group.key] = (consumer.bias.double() + bias_correction(weight_of(consumer), after, columns)).to(consumer.bias)
    return found


def apply_plan(
    model: PreTrainedModel,
    plan: PruningPlan,
    *,
    compensation: Compensation = "none",
    moments: Mapping[str, GroupMoments] | None = None,
    ridge: float = 1e-2,
    batches: Sequence[Batch] = (),
    check_weights: bool = True,
    progress: bool = False,
) -> PreTrainedModel:
    """Removes the units that the plan does not keep, in place, and rewrites the config.

    The config then says the new sizes: globally where all layers agree, by `per_layer_config` where they differ. Call
    `settle_class` before saving.

    Args:
        compensation: "none"; "bias" (the consumers must have a bias) or "least_squares", which need `moments`; or "sequential",
            which needs `batches` (see `cut_sequentially`).
        check_weights: also compare the plan's fingerprint with the weights.

    Raises:
        ValueError: see `check_plan` and `check_compensation`.
    """
    check_plan(model, plan, check_weights=check_weights)
    check_compensation(model, compensation)
    if compensation in ("bias", "least_squares") and moments is None:
        raise ValueError(f"`compensation` is `{compensation}`, which needs the calibration moments. Pass `moments`.")
    if compensation == "sequential" and not batches:
        raise ValueError("`compensation` is `sequential`, which needs the calibration rows themselves. Pass `batches`.")
    family = family_of(model.config)
    if family.traced:
        _cut_channels(model, plan)
        return model
    kept = plan.kept_indices()
    sizes = {(group.layer, group.kind): (group.size, len(kept.get(group.key, range(group.size)))) for group in unit_groups(model)}
    for group in unit_groups(model):
        if group.kind == "heads" and sizes[group.layer, group.kind][1] < group.size:
            # Stated, because a config without it derives the head size from the number of heads.
            model.config.get_text_config().head_dim = num_signal_channels(model, group, "before") // group.size
    if compensation == "sequential":
        cut_sequentially(model, kept, batches, progress=progress)
    else:
        repaired = repairs(model, kept, compensation, moments or {}, ridge)
        for group in unit_groups(model):
            if group.key in kept:
                with rewritten(model, group.layer):
                    cut_group(model, group, kept[group.key], repaired.get(group.key))
    fields = {
        layer: {
            name: _scaled(layer_field(model.config, layer, name), *sizes[layer, row.kind])
            for row in family.kinds
            if (layer, row.kind) in sizes and row.stack in (None, stack_of(model, layer))
            for name in row.config_fields
        }
        for layer in range(len(layers_of(model)))
    }
    write_layer_fields(model.config, fields)
    return model


def _scaled(value: int | None, before: int, after: int) -> int:
    """A config field in proportion to a group's units; None stood for the number of units itself."""
    return after if value is None else value * after // before


@torch.no_grad()
def _cut_channels(model: PreTrainedModel, plan: PruningPlan) -> None:
    """Removes channels, and writes the widths of all narrowed layers into `config.cria_channels`."""
    groups = [group for group in unit_groups(model) if group.key in plan.kept]
    network = network_of(model)
    names = {module: name for name, module in network.named_modules()}
    prefix = f"{model.base_model_prefix}." if network is not model.base_model else ""
    widths = {path: dict(sides) for path, sides in (getattr(model.config, "cria_channels", None) or {}).items()}
    for module, outputs, inputs in narrowings(model, groups, plan.kept_indices()):
        before = widths_of(module)
        narrow(module, outputs, inputs)
        path = names[module].removeprefix(prefix)
        changed = {side: count for side, count in widths_of(module).items() if count != before[side]}
        widths.setdefault(path, {}).update(changed)
    model.config.cria_channels = widths or None


def write_layer_fields(config: PreTrainedConfig, fields: dict[int, dict[str, int]]) -> None:
    """Writes every layer's sizes: globally at the widest, and `per_layer_config` for the layers that differ."""
    config = config.get_text_config()
    config.per_layer_config = None
    for name in {name for values in fields.values() for name in values}:
        setattr(config, name, max(values[name] for values in fields.values() if name in values))
    overrides = {
        layer: {name: value for name, value in values.items() if value != getattr(config, name)}
        for layer, values in fields.items()
    }
    overrides = {layer: values for layer, values in overrides.items() if values}
    if overrides:
        config.per_layer_config = overrides  # type: ignore[assignment]
