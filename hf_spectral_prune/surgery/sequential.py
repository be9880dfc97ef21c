"""Sequential compensation: refits layers block by block, fed by the layers cut before, aimed at the dense residual stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..calibration import Moments
from ..models.cria.channels import weight_of
from ..models.distributed import share, works_together
from ..models.families import UnitGroup, family_of, layers_of, module_of, unit_groups
from ..models.losses import Batch, num_rows
from ..models.modes import evaluating
from ..models.offload import rewritten
from ..models.streams import Place, Streams
from ..utils.descent import descend
from ..utils.progress import stage
from .compensate import correction
from .confidence import match_confidence
from .narrow import cut_group

# Ridges that are tried, as shares of the mean second moment of what the consumer reads.
RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# The last of every so many rows is kept back, to choose the ridge on.
_HELD_OUT = 8
# The same for the producers. On stories260K 1e-4 to 0.3 were alike; SmolLM2 without half of its units had 71.5 / 114.3
# perplexity with this and 71.8 / 117.0 with ten times as much.
_PRODUCERS_RIDGE = 1e-2
# Share of a norm's mean square weight below which a channel counts as one that the norm shuts off.
_LEAST_GAIN = 0.01


@dataclass
class Fit:
    """Sums over calibration positions that decide how a consumer is corrected.

    Attributes:
        inputs: moments of what the consumer reads (k,); the last channel is a constant 1 where it has a bias.
        cross: (out, k) float64, sum of `e x^T`, where `e` (out,) is what the consumer's output lacks of what would make the
            residual stream behind it the dense one.
    """

    inputs: Moments
    cross: Tensor

    @classmethod
    def of_nothing(cls, consumer: nn.Linear) -> Fit:
        """Sums of no data."""
        outputs, channels = weight_of(consumer).shape
        return cls.zeros(outputs, channels + (consumer.bias is not None), consumer.weight.device)

    @classmethod
    def zeros(cls, outputs: int, channels: int, device: torch.device) -> Fit:
        """Sums of no data, by their sizes."""
        return cls(Moments.zeros(channels, device), torch.zeros(outputs, channels, dtype=torch.float64, device=device))

    def update(self, x: Tensor, error: Tensor) -> None:
        """Adds positions: x (N, k), error (N, out), float32 or wider."""
        self.inputs.update(x)
        self.cross += error.T @ x

    def finish(self) -> None:
        """Completes the sums after the last `update`, over all processes; call once."""
        self.inputs.symmetrise()
        self.inputs.all_reduce()
        if works_together():
            torch.distributed.all_reduce(self.cross)

    def merge(self, other: Fit) -> Fit:
        """Sums of both sets of positions together."""
        return Fit(self.inputs.merge(other.inputs), self.cross + other.cross)

    def correction(self, ridge: float, has_bias: bool) -> Tensor:
        """(out, k) float64 to be added to the consumer's columns (and its bias, as last column)."""
        return correction(self.inputs.raw(), self.cross / max(self.inputs.count, 1), ridge, has_bias)

    def gain(self, change: Tensor, weights: Tensor) -> float:
        """By how much a `change` (out, k) of the columns lowers the mean square of e, outputs weighted by `weights` (out,)."""
        by_output = 2 * (change * self.cross).sum(dim=1) - (change @ self.inputs.second_moment * change).sum(dim=1)
        return float((by_output * weights).sum()) / max(self.inputs.count, 1)


@torch.no_grad()
def cut_sequentially(
    model: PreTrainedModel,
    kept: Mapping[str, Tensor],
    batches: Sequence[Batch],
    ridges: Sequence[float] = RIDGES,
    progress: bool = True,
) -> dict[str, float]:
    """Cuts groups to the units `kept`, layer by layer, and refits all producers and consumers, also those that lose nothing.

    Two streams of the rows go up the layers, see `Streams`; in a layer, attention comes before the FFN. Producers that read p
    in the pruned stream, and read d in the dense one, are refitted to give on p what they gave on d: `W + W E[(d - p) p^T]
    (E[p p^T] + lam I)^-1`, and their biases with them. A consumer that reads x
    in the pruned stream gets the columns `W_K + E[e x^T] (E[x x^T] + lam I)^-1`, where e is what its output lacks there of
    meeting the dense residual stream behind it: what was removed here, and what the layers before have left wrong. Its bias, if
    it has one, is refitted with them. The ridge is chosen for each consumer by the error on rows kept back, one of
    eight; where no correction helps there, it stays as it is. The correction itself is then of all rows. At last the logits get
    the factor of `match_confidence`, by the rows kept back.

    Memory: the moments of one consumer, twice, and at most six streams (rows, T, hidden size). Over several processes each runs
    its share of the batches, which all of them give alike, and the moments are summed.

    Args:
        kept: {group key: indices}; groups without an entry stay whole.
        batches: as for `collect_moments`.
        ridges: to choose from.

    Returns:
        {group key: the ridge}, infinite where the consumer stayed as it was.
    """
    layers = groups_by_layer(model)
    streams = Streams(model, share(batches))
    rows = share(held_out(batches))
    chosen: dict[str, float] = {}
    with evaluating(model):
        for layer in stage("Cutting and compensating", layers, unit="layers", show=progress):
            with rewritten(model, layer):
                chosen |= cut_layer(model, layers[layer], kept, streams, rows, ridges)
                streams.pruned_step(layer)
        match_confidence(model, streams, rows)
    return chosen


def groups_by_layer(model: PreTrainedModel) -> dict[int, list[UnitGroup]]:
    """{layer: its groups in the order in which the residual stream meets them}, from the first layer up."""
    layers: dict[int, list[UnitGroup]] = {}
    for group in sorted(unit_groups(model), key=lambda group: (group.layer, group.kind != "heads")):
        layers.setdefault(group.layer, []).append(group)
    return layers


@torch.no_grad()
def cut_layer(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    kept: Mapping[str, Tensor],
    streams: Streams,
    rows: Sequence[Tensor],
    ridges: Sequence[float] = RIDGES,
    draft: bool = False,
) -> dict[str, float]:
    """Takes the dense stream through one layer, then cuts and refits it; the step of `cut_sequentially`, whose words hold here.

    Args:
        groups: of that layer.
        rows: see `held_out`.
        draft: for trials: the producers stay as they are, and no correction is fitted on the rows kept back.

    Returns:
        {group key: the ridge}.
    """
    goals = _goals(model, groups, streams, with_inputs=not draft)
    chosen = {}
    for group in groups:
        if not draft:
            _refit_producers(model, group, streams, goals[group.key].inputs, rows)
        cut_group(model, group, kept.get(group.key, torch.arange(group.size)))
        fits = _collect(model, group, streams, goals.pop(group.key), rows)
        chosen[group.key] = _refit(model, group, *fits, ridges, draft)
    return chosen


def held_out(batches: Sequence[Batch], every: int = _HELD_OUT) -> list[Tensor]:
    """(rows,) bool of every batch: the last of `every` so many rows is kept back.

    One of few at least, but none of a single one.
    """
    counts = [num_rows(batch) for batch in batches]
    every = min(every, sum(counts))
    rows = torch.arange(sum(counts))
    return list(((rows % every == every - 1) & (every > 1)).split(counts))


def _consumer(model: PreTrainedModel, group: UnitGroup) -> nn.Linear:
    consumer: nn.Linear = module_of(model, group.layer, family_of(model.config).kind(group.kind).consumer)
    return consumer


def _behind(model: PreTrainedModel, group: UnitGroup) -> Place:
    """The residual stream behind a group's consumer."""
    stream = family_of(model.config).kind(group.kind).stream
    assert stream is not None
    return Place(layers_of(model)[group.layer].get_submodule(stream.module), stream.side)


@dataclass
class _Goals:
    """What a group is to meet, batch by batch.

    Attributes:
        inputs: what its producers read in the dense model, (rows, T, n); empty for a draft.
        streams: the dense residual stream behind it, (rows, T, out).
        scales: the root mean square of its output in the dense model, (rows, T, 1), where a norm stands behind it.
    """

    inputs: list[Tensor]
    streams: list[Tensor]
    scales: list[Tensor] | None


def _goals(model: PreTrainedModel, groups: Sequence[UnitGroup], streams: Streams, with_inputs: bool) -> dict[str, _Goals]:
    """{group key: its goals} of one layer, through which the dense stream is taken."""
    normed = [group for group in groups if _gain(model, group)[1]]
    places = {group.key: _behind(model, group) for group in groups}
    places |= {f"{group.key}/output": Place(_consumer(model, group), "output") for group in normed}
    if with_inputs:
        places |= {f"{group.key}/input": Place(_producers(model, group)[0], "input") for group in groups}
    found = streams.dense_step(groups[0].layer, places)
    scales = {group.key: [_rms(value) for value in found.pop(f"{group.key}/output")] for group in normed}
    inputs = {group.key: found.pop(f"{group.key}/input", []) for group in groups}
    return {group.key: _Goals(inputs[group.key], found[group.key], scales.get(group.key)) for group in groups}


def _producers(model: PreTrainedModel, group: UnitGroup) -> list[nn.Linear]:
    return [module_of(model, group.layer, producer.module) for producer in family_of(model.config).kind(group.kind).producers]


def _refit_producers(
    model: PreTrainedModel, group: UnitGroup, streams: Streams, inputs: list[Tensor], rows: Sequence[Tensor]
) -> None:
    """Lets a group's producers give on the pruned stream what they gave on the dense one; not where rows kept back say no.

    They all read the same, so that one regression of their dense input on their pruned one serves them all.
    """
    producers = _producers(model, group)
    has_bias = all(producer.bias is not None for producer in producers)
    size, device = weight_of(producers[0]).shape[1], producers[0].weight.device
    fitted, back = (Fit.zeros(size, size + has_bias, device) for _ in range(2))
    for index, x in enumerate(streams.pruned_inputs(group.layer, producers[0])):
        x = _floating(x)
        error = _floating(inputs[index].to(x.device)) - x
        _add(fitted, back, streams, index, rows[index], x, error, has_bias)
    for fit in (fitted, back):
        fit.finish()
        _check(fit, group)
    if not fitted.cross.any():  # nothing before it was changed
        return
    weights = torch.cat([weight_of(producer).double() for producer in producers])
    change = fitted.correction(_PRODUCERS_RIDGE, has_bias)
    if back.inputs.count:
        of_outputs = Fit(back.inputs, weights @ back.cross)
        if of_outputs.gain(weights @ change, torch.ones(len(weights), dtype=torch.float64, device=device)) <= 0:
            return
        change = fitted.merge(back).correction(_PRODUCERS_RIDGE, has_bias)
    for producer in producers:
        _change(producer, weight_of(producer).double() @ change, has_bias)


def _add(
    fitted: Fit, back: Fit, streams: Streams, index: int, kept_back: Tensor, x: Tensor, error: Tensor, with_constant: bool
) -> None:
    """Adds a batch's real positions to the sums to fit on, and to those of the rows kept back."""
    if with_constant:
        x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
    real = streams.real(index, x)
    # The base model may see several rows (the choices of a question) for one of the batch.
    chosen = kept_back.repeat_interleave(len(real) // len(kept_back)).to(real.device)[:, None]
    for fit, positions in zip((fitted, back), (real & ~chosen, real & chosen), strict=True):
        fit.update(x[positions], error[positions])


def _change(linear: nn.Linear, change: Tensor, has_bias: bool) -> None:
    """Adds `change` (out, k) to a layer's weights; its last column to the bias if it has one."""
    if has_bias:
        linear.bias.copy_(linear.bias.double() + change[:, -1])
        change = change[:, :-1]
    weight_of(linear).copy_(weight_of(linear).double() + change)


def _collect(
    model: PreTrainedModel, group: UnitGroup, streams: Streams, goals: _Goals, rows: Sequence[Tensor]
) -> tuple[Fit, Fit]:
    """Sums of a consumer that is cut, over the rows to fit on and over those kept back."""
    consumer = _consumer(model, group)
    fits = Fit.of_nothing(consumer), Fit.of_nothing(consumer)
    places = {"x": Place(consumer, "input"), "y": Place(consumer, "output"), "stream": _behind(model, group)}
    gain, _ = _gain(model, group)
    last = "stream" if group.kind == "heads" else None
    for index, found in enumerate(streams.pruned_values(group.layer, consumer, places, last)):
        error = _floating(goals.streams[index].to(found["x"].device)) - _floating(found["stream"])
        x = _floating(found["x"])
        if goals.scales is None:
            error = error / gain
        else:
            error = _through_norm(error, _floating(found["y"]), gain, goals.scales[index].to(x.device))
        _add(*fits, streams, index, rows[index], x, error, consumer.bias is not None)
    for fit in fits:
        fit.finish()
        _check(fit, group)
    if fits[0].inputs.count == 0:
        raise ValueError("The calibration set has no unpadded position. Give text that is not empty.")
    return fits


def _check(fit: Fit, group: UnitGroup) -> None:
    # One value that is not finite makes a sum of its channel so.
    if not math.isfinite(float(fit.inputs.sum.sum() + fit.cross.sum())):
        raise ValueError(
            f"Non-finite activations at `{group.key}`. Load the model in a wider `dtype` (float32 or bfloat16) "
            "or check its weights."
        )


def _refit(model: PreTrainedModel, group: UnitGroup, fitted: Fit, back: Fit, ridges: Sequence[float], draft: bool) -> float:
    """Chooses the ridge on the rows kept back, and corrects the consumer; infinite where it stays as it is."""
    consumer = _consumer(model, group)
    has_bias = consumer.bias is not None
    chosen = float("inf")
    if back.inputs.count:
        weights = _gain(model, group)[0].double().square()
        # Each takes a factorisation, and what is gained rises with the ridge and then falls: most need not be tried.
        lost = cache(lambda index: -back.gain(fitted.correction(ridges[index], has_bias), weights))
        best = descend(len(ridges), len(ridges) // 2, lost)
        if lost(best) < 0:
            chosen = ridges[best]
        if not draft:
            fitted = fitted.merge(back)
    else:
        chosen = ridges[len(ridges) // 2]
    if chosen == float("inf"):
        return chosen
    _change(consumer, fitted.correction(chosen, has_bias), has_bias)
    return chosen


def _gain(model: PreTrainedModel, group: UnitGroup) -> tuple[Tensor, bool]:
    """(out,) how much of a consumer's output reaches the residual stream, and whether a norm scales that token by token."""
    row = family_of(model.config).kind(group.kind)
    weight = weight_of(_consumer(model, group))
    ones = _floating(torch.ones(len(weight), dtype=weight.dtype, device=weight.device))
    layer = layers_of(model)[group.layer]
    if row.stream_norm is not None:
        norm = layer.get_submodule(row.stream_norm)
        return _floating(norm(ones.to(weight.dtype))), True  # an RMS norm turns ones into its weights
    return ones * (1.0 if row.stream_factor is None else attrgetter(row.stream_factor)(layer)), False


def _through_norm(error: Tensor, output: Tensor, gain: Tensor, scale: Tensor) -> Tensor:
    """What a consumer's output y (..., out) lacks where an RMS norm stands between it and a stream that lacks `error`.

    The norm gives `gain * y / rms(y)`, whatever the length of y: of all that it maps to the wanted value, the one that has the
    dense model's `scale` (..., 1) is aimed at. Channels that the norm all but shuts off are not asked to make up for what they
    cannot.
    """
    bounded = gain / (gain.square() + _LEAST_GAIN * gain.square().mean())
    return error * scale * bounded + output * (scale / _rms(output) - 1)


def _rms(value: Tensor) -> Tensor:
    """(..., 1) root mean square over the last dimension, never zero."""
    value = _floating(value)
    return value.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=torch.finfo(value.dtype).tiny)


def _floating(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
