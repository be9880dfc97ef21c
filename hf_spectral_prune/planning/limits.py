"""What sizes a run's options and the model's stock class allow."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..models.families import family_of, unit_groups
from ..surgery import stock_accepts_heads
from .allocate import Limits, alignment_for
from .reduction_target import Target


def limits_for(model: PreTrainedModel, args: SpectralPruningArguments, target: Target) -> Limits:
    """The limits of a run towards a target."""
    config = model.config.get_text_config()
    round_to = args.round_to
    if round_to is None:
        round_to = alignment_for(target.groups, target.now - target.goal, uniform=args.layout == "uniform")
    if family_of(model.config).traced:
        return Limits(round_to, _min_units(args))
    free = args.layout == "per_layer" or args.stock_class == "mistral"
    heads = next((group for group in unit_groups(model, args.units) if group.kind == "heads"), None)
    if free or heads is None or config.is_heterogeneous:
        return Limits(round_to, _min_units(args), equal_heads=args.uniform_heads)
    per_group = config.num_attention_heads // heads.size
    return Limits(round_to, _min_units(args), lambda count: stock_accepts_heads(model.config, count * per_group))


def _min_units(args: SpectralPruningArguments) -> dict[str, int]:
    return {
        "ffn": args.min_ffn_units,
        "shared_ffn": args.min_ffn_units,
        "decoder_ffn": args.min_ffn_units,
        "heads": args.min_kv_groups,
        "channels": args.min_channels,
    }
