"""What a run counts, and how much of it may be left: parameters, or MACs at a stated input size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..data.texts import CalibrationData
from ..evaluation.figures import num_non_embedding_parameters, num_parameters
from ..models.families import UnitGroup, consumers, family_of, network_of, unit_groups
from ..models.families.groups import is_vision
from ..models.families.tracing import example_input
from ..models.losses import Batch, predicts_next_token
from ..models.offload import is_offloaded
from ..utils.types import Json
from . import Budget, Count, Sizes, budget_of, macs_per_unit
from .allocate import parameters_after
from .flops import attention_path, layer_macs

_KINDS = {
    "ffn": "FFN neurons",
    "shared_ffn": "FFN neurons of shared experts",
    "decoder_ffn": "FFN neurons of the decoder",
    "heads": "attention heads (key/value groups)",
    "channels": "channels",
}


@dataclass(frozen=True)
class Target:
    """The cost that is to be cut.

    Attributes:
        unit: "parameters", "units", "MACs" or "bytes".
        now, goal: of the model before pruning, and wanted after it.
        base: what the fraction is counted over.
        groups: the groups, with the cost in this unit as their `parameters_per_unit`.
        count: cost of a shape where the groups' costs interact (channels); else they add up.
        budget: exact counts of a shape where costs interact.
    """

    unit: str
    now: int
    goal: int
    base: int
    groups: list[UnitGroup]
    count: Count | None = None
    budget: Budget | None = None


def cost_of(target: Target, sizes: Sizes) -> int:
    """Cost of the model, in the target's unit, once every group has its size in `sizes`."""
    return target.count(sizes) if target.count is not None else parameters_after(target.groups, sizes, target.now)


def check_scope(model: PreTrainedModel, args: SpectralPruningArguments) -> None:
    """Checks that the model has what `target_scope` counts.

    Raises:
        ValueError: "flops" for a model that reads no images, "non_embedding" for one that has no tokens, or a speed of decoding
            for one that does not decode.
    """
    if args.target_tokens_per_second is not None and (not predicts_next_token(model) or is_offloaded(model)):
        what = "whose layers are on the disk cannot be timed" if is_offloaded(model) else "writes no text token by token"
        raise ValueError(f"`target_tokens_per_second` is a speed of decoding, and a {type(model).__name__} {what}. Leave it out.")
    if args.target_scope == "flops" and not is_vision(model):
        raise ValueError(
            f'`target_scope="flops"` is for models that read images, and the FLOPs of a {type(model).__name__} depend on the '
            "length of its text. Use `all`, `non_embedding` or `prunable`."
        )
    if args.target_scope == "non_embedding" and is_vision(model):
        raise ValueError(
            f'`target_scope="non_embedding"` is for models of text, and a {type(model).__name__} embeds no tokens. Use `all`, '
            "`prunable` or `flops`."
        )


def set_target(
    model: PreTrainedModel, args: SpectralPruningArguments, before: int, now: int, calibration: CalibrationData | None
) -> Target:
    """The target of a run.

    Args:
        before: parameters of the model as it was given, which the fraction is of.
        now: parameters as it stands, biases for a repair included.

    Raises:
        ValueError: see `check_scope` and `_bytes_target`.
    """
    check_scope(model, args)
    groups = unit_groups(model, args.units)
    if args.target_bytes is not None:
        return _bytes_target(model, args, groups, now)
    if args.target_scope == "flops":
        return _macs_target(model, args, groups, calibration)
    budget = budget_of(model, groups) if family_of(model.config).traced else None
    if args.target_scope == "units":
        total = sum(group.size for group in groups)
        each = [replace(group, parameters_per_unit=1) for group in groups]
        number = None if budget is None else lambda sizes: sum(sizes.values())
        return Target("units", total, total - int(args.target_reduction * total), total, each, number, budget)
    if args.target_scope == "non_embedding":
        base = num_non_embedding_parameters(model)
    elif args.target_scope == "prunable":
        costs = sum(group.size * group.parameters_per_unit for group in groups)
        base = costs if budget is None else before - budget.parameters(dict.fromkeys((group.key for group in groups), 0))
    else:
        base = before
    count = None if budget is None else budget.parameters
    return Target("parameters", now, before - int(args.target_reduction * base), base, groups, count, budget)


def _bytes_target(model: PreTrainedModel, args: SpectralPruningArguments, groups: list[UnitGroup], now: int) -> Target:
    """Bytes of the weights, and of one sequence's key/value cache in the weights' type at the stated number of positions.

    Raises:
        ValueError: the model takes no more than that already, or a cache is counted that it does not have.
    """
    size = model.dtype.itemsize
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cache = 0
    if args.target_context:
        if not predicts_next_token(model):
            raise ValueError(
                f"`target_context` counts a key/value cache, which a {type(model).__name__} does not have. Leave it out."
            )
        cache = 2 * _head_size(model) * args.target_context * size  # of one key/value group: keys and values
    every = [group for group in unit_groups(model) if group.kind == "heads"] if cache else []
    total, goal = weights + cache * sum(group.size for group in every), int(args.target_bytes or 0)
    if goal >= total:
        raise ValueError(f"`target_bytes` is {goal:,}, and the model takes {total:,} bytes already. Lower it.")
    costs = [
        replace(group, parameters_per_unit=group.parameters_per_unit * size + (cache if group.kind == "heads" else 0))
        for group in groups
    ]
    budget = budget_of(model, groups) if family_of(model.config).traced else None
    others = weights - now * size
    count = None if budget is None else lambda sizes: budget.parameters(sizes) * size + others
    return Target("bytes", total, goal, total, costs, count, budget)


def _head_size(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def _macs_target(
    model: PreTrainedModel, args: SpectralPruningArguments, groups: list[UnitGroup], calibration: CalibrationData | None
) -> Target:
    macs = layer_macs(model, example_image(model, calibration))
    total = sum(macs.values())
    paths = {module: name for name, module in network_of(model).named_modules()}
    costs = []
    for group in groups:
        attention = attention_path(paths[consumers(model, group)[0].module]) if group.kind == "heads" else None
        costs.append(replace(group, parameters_per_unit=macs_per_unit(model, group, macs, attention)))
    budget = budget_of(model, groups, macs) if family_of(model.config).traced else None
    goal = total - int(args.target_reduction * total)
    return Target("MACs", total, goal, total, costs, None if budget is None else budget.macs, budget)


def target_words(model: PreTrainedModel, args: SpectralPruningArguments, calibration: CalibrationData | None = None) -> str:
    """A run's target in numbers, as a sentence: what fraction of what is to go, and how much that is (widths go in steps).

    Args:
        calibration: its first image is what FLOPs are counted on.

    Raises:
        ValueError: see `check_scope`.
    """
    all_parameters = num_parameters(model)
    target = set_target(model, args, all_parameters, all_parameters, calibration)
    kinds = " and ".join(_KINDS[kind] for kind in dict.fromkeys(group.kind for group in target.groups))
    removed = target.now - target.goal
    share = f"{100 * args.target_reduction:.4g} %"
    if args.target_tokens_per_second is not None:
        return f"Removing as much of {kinds} as decoding {args.target_tokens_per_second:,.1f} tokens/s here takes."
    if target.unit == "bytes":
        return f"Removing {removed:,} of {target.base:,} bytes, from {kinds}: {target.goal:,} may stay."
    if target.unit == "units":
        return f"Removing {share} of the {target.base:,} {kinds}: at most {removed:,}."
    if target.unit == "MACs":
        return f"Removing {share} of the {target.base:,} MACs of one image, from {kinds}: at most {removed:,} MACs."
    if args.target_scope == "all":
        return f"Removing {share} of all {target.base:,} parameters, from {kinds}: at most {removed:,} parameters."
    whole = f"at most {removed:,} parameters, {removed / all_parameters:.1%} of all {all_parameters:,}".replace("%", " %")
    if args.target_scope == "prunable":
        return f"Removing {share} of the {target.base:,} parameters of {kinds}: {whole}."
    return f"Removing {share} of the {target.base:,} parameters outside the embeddings, from {kinds}: {whole}."


def example_image(model: PreTrainedModel, calibration: CalibrationData | None) -> Batch:
    """One input of a model that reads images: the first of the calibration data, else one of the config's size."""
    if calibration is None:
        return {"pixel_values": example_input(model).to(model.dtype)}
    return {"pixel_values": calibration.batches[0]["pixel_values"][:1].to(model.dtype)}


def macs_report(
    model: PreTrainedModel, target: Target, sizes: Sizes, before: Mapping[str, int], calibration: CalibrationData | None
) -> Json:
    """What the report says of a cut model's MACs: totals, and [before, after] of every layer.

    Args:
        sizes: what its plan kept of every group.
        before: MACs of the dense model's layers.

    Raises:
        RuntimeError: it does not take the MACs that were counted before the cut.
    """
    image = example_image(model, calibration)
    after = layer_macs(model, image)
    total = sum(after.values())
    if target.unit == "MACs" and target.budget is not None and target.budget.macs(sizes) != total:
        raise RuntimeError(
            f"The cut model takes {total:,} MACs, but the plan predicted {target.budget.macs(sizes):,}. This is a fault of the "
            "tracing; please report it."
        )
    return {
        "input_shape": list(image["pixel_values"].shape[1:]),
        "before": sum(before.values()),
        "after": total,
        "layers": {path: [count, after.get(path, 0)] for path, count in before.items()},
    }
