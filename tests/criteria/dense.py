"""What the criteria's tests share: one call for the whole way to scores, and raw signals read by hooks of their own."""

from __future__ import annotations

from collections import defaultdict

import torch

from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import collect_statistics, make_criterion, score_units
from hf_spectral_prune.criteria.score import group_data
from hf_spectral_prune.models.families import family_of, module_of, unit_groups


def scores_of(model, batches, name, kinds=None, seed=42, **options):
    """{group key: scores} of one criterion, by the functions that the pruner calls."""
    criterion, groups = make_criterion(name, options), unit_groups(model, kinds)
    moments = None
    if criterion.needs_moments:
        moments = collect_moments(model, groups, batches, signals=criterion.signals, progress=False)
    statistics = collect_statistics(model, groups, criterion, batches, moments, seed=seed, progress=False)
    return score_units(model, groups, criterion, moments, statistics=statistics, seed=seed, progress=False)


def data_of(model, batches, criterion, kinds=None):
    """One `GroupData` a group, moments and statistics included."""
    groups = unit_groups(model, kinds)
    moments = collect_moments(model, groups, batches, progress=False)
    statistics = collect_statistics(model, groups, criterion, batches, moments, progress=False)
    return [group_data(model, group, moments[group.key], 42, statistics.get(group.key)) for group in groups]


def raw_signals(model, batches):
    """{group key: (N, n_channels) float64 numpy array} of what every consumer reads, over real positions only."""
    seen, handles = defaultdict(list), []
    for group in unit_groups(model):
        consumer = module_of(model, group.layer, family_of(model.config).kind(group.kind).consumer)
        handles.append(consumer.register_forward_pre_hook(lambda _module, args, key=group.key: seen[key].append(args[0])))
    for batch in batches:
        with torch.no_grad():
            model(**batch)
        for values in seen.values():
            values[-1] = values[-1][batch["attention_mask"].bool()]
    for handle in handles:
        handle.remove()
    return {key: torch.cat(values).double().numpy() for key, values in seen.items()}


def unit_entries(model, group):
    """For every unit: [(parameter name, index)] of all the entries that leave with it, from the layout of plain Llama."""
    prefix = f"model.layers.{group.layer}."
    if group.kind == "ffn":
        rows = {"mlp.gate_proj": 1, "mlp.up_proj": 1}
        consumer, width = "mlp.down_proj", 1
    else:
        heads = model.config.num_attention_heads // group.size
        size = model.config.head_dim
        rows = {"self_attn.q_proj": heads * size, "self_attn.k_proj": size, "self_attn.v_proj": size}
        consumer, width = "self_attn.o_proj", heads * size
    names = dict(model.named_parameters())
    entries = []
    for unit in range(group.size):
        mine = [
            (f"{prefix}{module}.{kind}", (slice(unit * count, (unit + 1) * count),))
            for module, count in rows.items()
            for kind in ("weight", "bias")
            if f"{prefix}{module}.{kind}" in names
        ]
        entries.append([*mine, (f"{prefix}{consumer}.weight", (slice(None), slice(unit * width, (unit + 1) * width)))])
    return entries
