"""A differentiable loss that asks the units of a layer to be uncorrelated, and a mixin that adds it to any Trainer's loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...calibration.signals import Reader, Spatial, readers
from ...models.families import UnitGroup, family_of, unit_groups
from ...models.families.experts import check_no_experts
from ...utils.types import Options

Form = Literal["energy", "modes"]
# What a group's consumers read in one forward pass, with its graph, and how it becomes rows of channels.
Signals = dict[str, list[tuple[Reader, Tensor]]]

_FORMS = ("energy", "modes")
# Added to every variance, as a share of the layer's mean variance: a channel that is all but silent gets no exploding gradient.
_EPS = 1e-4


def ndi_regularizer(signals: Tensor, channels_per_unit: int = 1, form: Form = "energy") -> Tensor:
    """How much the units of a layer repeat one another, 0 (uncorrelated) to 1 (all alike): to be added to a loss.

    With R the correlation matrix of the channels, entries inside one unit left out:

    - "energy": mean of `R[c, j]^2` over all pairs of channels of different units, the off-diagonal energy of R.
    - "modes": the part of the same energy that lies in the leading modes, those that hold more than one channel's variance
      (`sum (lambda_i - 1)^2` over `lambda_i > 1`). It sees what many channels share and costs an eigendecomposition, O(n^3).

    Channels that hardly vary beside the layer's mean variance count little, silent ones not at all: to silence a unit would else
    be the cheapest way to less correlation. Both are differentiable forms of low diversity (Wang and Jiang,
    "Neural Differentiation in Deep Networks", CVPR 2026, eq. 5-9 and 38). Independent signals still give about `1 / N`, the
    variance of a correlation of N positions.

    Args:
        signals: (N, n_units * channels_per_unit) outputs of the units, a row a position; any float type.
        channels_per_unit: neighbouring channels that make one unit (a head's `head_dim`).

    Returns:
        A float32 (float64 for float64 signals) scalar; 0 where there are fewer than two units or positions.

    Raises:
        ValueError: an unknown form, or signals of another shape.
    """
    _check_form(form)
    if signals.dim() != 2 or channels_per_unit < 1 or signals.shape[1] % channels_per_unit:
        raise ValueError(
            f"`signals` has shape {tuple(signals.shape)}; it must be (positions, channels) with a multiple of "
            f"`channels_per_unit` ({channels_per_unit}) channels."
        )
    with torch.autocast(signals.device.type, enabled=False):
        values = signals if signals.dtype == torch.float64 else signals.float()
        count, channels = values.shape
        if count < 2 or channels == channels_per_unit:
            return values.sum() * 0
        scaled, shares = _standardised(values)
        of_units = shares.reshape(-1, channels_per_unit).sum(dim=1)
        pairs = (shares.sum().square() - of_units.square().sum()).clamp(min=_EPS)
        if form == "modes":
            unit = torch.arange(channels, device=values.device) // channels_per_unit
            between = (scaled.T @ scaled / count).masked_fill(unit[:, None] == unit, 0)  # its eigenvalues are lambda_i - 1
            return torch.linalg.eigvalsh(between).relu().square().sum() / pairs
        units = scaled.reshape(count, -1, channels_per_unit).movedim(1, 0)  # (units, N, c)
        within = units.mT @ units / count  # (units, c, c)
        # The smaller of the two Gram matrices: both have the same energy.
        gram = scaled.T @ scaled if channels <= count else scaled @ scaled.T
        return (gram.square().sum() / count**2 - within.square().sum()).clamp(min=0) / pairs


def _standardised(values: Tensor) -> tuple[Tensor, Tensor]:
    """(N, n) with mean 0, and each channel's variance (n,), about 1: a constant channel becomes 0 and has variance 0."""
    centred = values - values.mean(dim=0)
    variance = centred.square().mean(dim=0)
    floor = _EPS * variance.mean().detach() + torch.finfo(values.dtype).tiny
    return centred * (variance + floor).rsqrt(), variance / (variance + floor)


@contextmanager
def unit_signals(model: PreTrainedModel, groups: Sequence[UnitGroup]) -> Iterator[Signals]:
    """While open, forward passes leave in the mapping what the groups' consumers read, with its graph.

    Only references are kept: what hooks compute would differ when gradient checkpointing runs a layer again.
    """
    found: Signals = {group.key: [] for group in groups}

    def keeper(key: str, reader: Reader) -> Callable[[Tensor], None]:
        return lambda value: found[key].append((reader, value))

    with ExitStack() as stack:
        for group in groups:
            for reader in readers(model, group, "after", Spatial("pooled")):
                stack.enter_context(reader.reading(keeper(group.key, reader)))
        yield found


def model_regularizer(groups: Sequence[UnitGroup], signals: Signals, mask: Tensor | None = None, form: Form = "energy") -> Tensor:
    """Mean of `ndi_regularizer` over the groups.

    Args:
        signals: as `unit_signals` collected them in one forward pass.
        mask: (B, T) or (B, C, T), positions that count; None for all. Images have none.

    Raises:
        ValueError: no gradient reaches any of the signals.
    """
    if not any(value.requires_grad for found in signals.values() for _, value in found):
        raise ValueError(
            "No gradient reaches the units' signals, so the regulariser cannot train them. Unfreeze weights before them, or set "
            '`gradient_checkpointing_kwargs={"use_reentrant": False}` if gradient checkpointing is on.'
        )
    terms = []
    for group in groups:
        rows = [_real(reader.rows(value), mask) for reader, value in signals[group.key]]
        terms.append(ndi_regularizer(torch.cat(rows), group.channels_per_unit, form))
    return torch.stack([term.to(terms[0].device) for term in terms]).mean()


def _real(signal: Tensor, mask: Tensor | None) -> Tensor:
    """The positions (N, n) of a signal (..., n) that count."""
    rows = signal.flatten(0, -2)
    return rows if mask is None else rows[mask.flatten().bool().to(rows.device)]


class NDIRegularizedTrainerMixin:
    """Adds `ndi_weight * regulariser` to the training loss of any Trainer; evaluation keeps the plain loss.

    Put it before the Trainer: `class DiverseTrainer(NDIRegularizedTrainerMixin, Trainer)`. The regulariser's mean since the last
    log goes to the loggers as `ndi_regularizer`. Works with gradient accumulation, mixed precision, data-parallel training and
    (not reentrant) gradient checkpointing, and beside callbacks that cut the model.

    Args:
        ndi_weight: factor of the regulariser (see `ndi_regularizer`, 0 to 1) in the loss.
        ndi_units: kinds of unit that it looks at; None for all the family has.
        ndi_form: "energy" or "modes".

    Raises:
        ValueError: at construction: a negative weight, an unknown form, an unknown family or kind of unit, weights that cannot be
            cut, or a Trainer that compiles the model or splits batches over GPUs of one process (hooks see neither).
    """

    def __init__(
        self,
        *args: Any,
        ndi_weight: float = 0.1,
        ndi_units: Sequence[str] | None = None,
        ndi_form: Form = "energy",
        **kwargs: Any,
    ) -> None:
        if not (math.isfinite(ndi_weight) and ndi_weight >= 0):
            raise ValueError(f"`ndi_weight` is {ndi_weight}; it must be a number that is not negative.")
        _check_form(ndi_form)
        self.ndi_weight = ndi_weight
        self.ndi_units = None if ndi_units is None else list(ndi_units)
        self.ndi_form: Form = ndi_form
        self._ndi_values: list[Tensor] = []
        super().__init__(*args, **kwargs)
        trainer: Any = self
        network = trainer.accelerator.unwrap_model(trainer.model)
        check_no_experts(family_of(network.config), "The regulariser")
        unit_groups(network, self.ndi_units)
        if trainer.args.torch_compile or trainer.args.n_gpu > 1:
            cause = "`torch_compile` is on" if trainer.args.torch_compile else f"one process uses {trainer.args.n_gpu} GPUs"
            raise ValueError(
                f"The regulariser reads signals by hooks, but {cause}, where hooks are not seen. Leave compilation off and start "
                "one process per GPU (`torchrun` or `accelerate launch`)."
            )

    def compute_loss(
        self, model: nn.Module, inputs: Options, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The Trainer's loss, and in training the weighted regulariser of the same forward pass."""
        trainer: Any = super()
        options = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if not model.training or self.ndi_weight == 0:
            return trainer.compute_loss(model, inputs, **options)
        network = self.accelerator.unwrap_model(model)  # type: ignore[attr-defined]
        groups = unit_groups(network, self.ndi_units)  # a callback may have cut the model since the last step
        mask = inputs.get("attention_mask")
        with unit_signals(network, groups) as signals:
            result = trainer.compute_loss(model, inputs, **options)
        penalty = model_regularizer(groups, signals, mask, self.ndi_form)
        self._ndi_values.append(penalty.detach())
        loss = result[0] if return_outputs else result
        loss = loss + self.ndi_weight * penalty.to(loss.device) / self._micro_batches(num_items_in_batch)
        return (loss, *result[1:]) if return_outputs else loss

    def _micro_batches(self, num_items_in_batch: Tensor | int | None) -> int:
        """Micro-batches that share an optimizer step, where the Trainer does not divide the loss by their number itself."""
        trainer: Any = self
        scaled = trainer.loss_is_scaled_for_ga
        if scaled is None:
            counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = counted or trainer.compute_loss_func is not None
        return trainer.current_gradient_accumulation_steps if scaled else 1

    def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
        """Adds the regulariser's mean since the last log to the training loss's log."""
        if "loss" in logs and self._ndi_values:
            logs["ndi_regularizer"] = float(torch.stack(self._ndi_values).mean())
            self._ndi_values.clear()
        trainer: Any = super()
        trainer.log(logs, *args, **kwargs)


def _check_form(form: str) -> None:
    if form not in _FORMS:
        raise ValueError(f"The regulariser's form is `{form}`; choose from {', '.join(f'`{name}`' for name in _FORMS)}.")
