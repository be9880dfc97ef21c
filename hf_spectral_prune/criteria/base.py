"""What a criterion is, the registry of criteria, and the data of one unit group that becomes a score per unit."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..calibration.signals import Side, Spatial
from ..models.families import UnitGroup
from ..models.losses import Batch
from ..utils.types import Options
from ..utils.words import did_you_mean, listed
from . import plugins

Scores = dict[str, Tensor]
# {group key: {name: (n_units, ...)}}: the first dimension is always the units, so that a cut can select from it.
Statistics = dict[str, dict[str, Tensor]]
# {group key: {name: (m,)}}: a few numbers a group that a criterion came by, for the report; nothing in a run reads them.
Diagnostics = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class GroupData:
    """What a criterion may look at to score one unit group.

    Attributes:
        group: the units.
        producers: weights of the producers by module path, rows in unit order: (n_units * rows_per_unit, in_features);
            a fused projection is given block by block.
        consumer: (out_features, n_channels) weight of the consumer.
        moments: both sides' moments, or None for a criterion that needs no data.
        statistics: what the criterion's own `collect` gathered for this group, (n_units, ...) each.
        generator: seeded per group, for criteria that draw.
        diagnostics: where a criterion leaves a few numbers for the report; None where nobody asks for them.
    """

    group: UnitGroup
    producers: dict[str, Tensor]
    consumer: Tensor
    moments: GroupMoments | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)
    diagnostics: dict[str, Tensor] | None = None

    def per_unit(self, per_channel: Tensor) -> Tensor:
        """Sums a value per output-side channel (n_channels,) over each unit's channels: (n_units,)."""
        return per_channel.reshape(self.group.size, -1).sum(dim=1)

    def unit_matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Every matrix that loses weights with a unit, the consumer last: name, (n_units, weights per unit) float64."""
        for name, weight in self.producers.items():
            yield name, weight.double().reshape(self.group.size, -1)
        yield "consumer", self.consumer.double().T.reshape(self.group.size, -1)

    def unit_norms(self) -> Tensor:
        """(n_units,) float64: root of the sum of squares of all the weights that leave with a unit, `||W_c||_F`."""
        return torch.stack([matrix.square().sum(dim=1) for _, matrix in self.unit_matrices()]).sum(dim=0).sqrt()

    def producer_norms(self) -> Tensor:
        """(n_units,) float64: the same of the weights that make a unit alone, without those that read it."""
        own = [matrix.square().sum(dim=1) for name, matrix in self.unit_matrices() if name != "consumer"]
        return torch.stack(own).sum(dim=0).sqrt()

    def before(self) -> tuple[Tensor, Tensor]:
        """Input-side (mean (n,), raw second moment (n, n)) with one entry for every output-side channel.

        A key/value head's value channels are repeated for each of its query heads, as the attention reads them.
        """
        moments = self._required_moments().before
        if moments is None:
            raise ValueError(f'The input-side moments of `{self.group.key}` were not collected. Put "before" into `sides`.')
        mean, raw = moments.mean(), moments.raw()
        repeats = self.consumer.shape[1] // moments.num_channels
        if repeats > 1:
            per_unit = moments.num_channels // self.group.size
            channels = torch.arange(moments.num_channels).reshape(self.group.size, 1, per_unit)
            index = channels.expand(-1, repeats, -1).flatten()
            mean, raw = mean[index], raw[index][:, index]
        return mean, raw

    def after(self) -> tuple[Tensor, Tensor]:
        """Output-side (mean (n,), raw second moment (n, n))."""
        moments = self._required_moments().after
        return moments.mean(), moments.raw()

    def after_energy(self) -> Tensor:
        """(n_channels,) float64: mean square E[x_c^2] of every output-side channel."""
        moments = self._required_moments().after
        return moments.second_moment.diagonal() / max(moments.count, 1)

    def consumer_gram(self) -> Tensor:
        """(n, n) float64: W^T W of the consumer's columns, which turns raw outputs into contributions."""
        weight = self.consumer.double()
        return weight.T @ weight

    def _required_moments(self) -> GroupMoments:
        if self.moments is None:
            raise ValueError(f"The criterion needs calibration moments, but none were collected for `{self.group.key}`.")
        return self.moments


class Criterion:
    """Scores the units of a group: higher means keep.

    A criterion is a frozen dataclass whose fields are its options (`--criterion_args`); a subclass writes `score`. What it
    reads is of three kinds: weights (always there), moments (`needs_moments`), and statistics of its own
    (`needs_statistics`), which `collect` gathers in passes over the calibration data.
    """

    name: ClassVar[str]
    needs_moments: ClassVar[bool] = False
    # Which moments it reads. Leaving out the input side, `("after",)`, halves the memory and time of the calibration.
    sides: ClassVar[tuple[Side, ...]] = ("before", "after")
    needs_statistics: ClassVar[bool] = False
    # The scores are a draw, so that one seed says little of them; an estimate by random probes is not meant.
    is_random: ClassVar[bool] = False

    @property
    def signals(self) -> Literal["activations", "loss"]:
        """What the output-side moments hold (see `collect_moments`)."""
        return "activations"

    @property
    def positions(self) -> Spatial:
        """Which positions of a channel's map the moments count."""
        return Spatial("sampled")

    @property
    def needs_loss(self) -> bool:
        """Whether the batches must make a loss that can be differentiated."""
        return self.signals == "loss"

    @property
    def needs_data(self) -> bool:
        """Whether scores need calibration data at all."""
        return self.needs_moments or self.needs_statistics

    def collect(
        self,
        model: PreTrainedModel,
        groups: Sequence[UnitGroup],
        batches: Sequence[Batch],
        moments: Mapping[str, GroupMoments],
        *,
        seed: int,
        progress: bool,
    ) -> Statistics:
        """Statistics of its own for every group, with the units as first dimension; state is O(units), data is streamed."""
        return {}

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) float64 scores of one group."""
        raise NotImplementedError(f"`{type(self).__name__}` has no `score`.")

    def score_all(self, groups: Iterable[GroupData]) -> Scores:
        """{group key: scores}. To be overridden by a criterion that normalises over the network."""
        return {data.group.key: self.score(data) for data in groups}


CRITERIA: dict[str, type[Criterion]] = {}
C = TypeVar("C", bound=type[Criterion])


def register(name: str) -> Callable[[C], C]:
    """Class decorator that puts a criterion into the registry."""

    def add(criterion: C) -> C:
        criterion.name = name
        CRITERIA[name] = criterion
        return criterion

    return add


# What other tools call a metric, or the method that it comes from.
_OTHER_NAMES = {
    "wanda": "energy",
    "wanda_sp": "energy",
    "flap": "fluctuation",
    "llm_pruner": "taylor",
    "obd": "fisher",
    "sparsegpt": "obs",
    "ssi": "spectral",
    "l1": "magnitude",
    "l2": "magnitude",
    "weights": "magnitude",
}


def known_criteria() -> list[str]:
    """Names of all criteria: the package's own and those that installed packages offer."""
    return sorted({*CRITERIA, *plugins.names()})


def make_criterion(name: str, options: Options | None = None) -> Criterion:
    """A criterion by name, with its options; names not of this package are looked up among the entry points.

    Raises:
        ValueError: unknown name or option (names the nearest), a value that the option does not take, or an entry point
            that cannot be loaded.
    """
    if name not in CRITERIA and name in plugins.names():
        register(name)(_checked(name, plugins.load(name)))
    if name not in CRITERIA:
        known = known_criteria()
        own = _OTHER_NAMES.get(name.lower())
        near = did_you_mean(name, known) if own is None else f" Its metric is `{own}` here."
        raise ValueError(f"`criterion` is `{name}`, which is not known.{near} Known: {listed(sorted(known))}.")
    criterion: Any = CRITERIA[name]
    known = [option.name for option in dataclasses.fields(criterion)]
    hints = get_type_hints(criterion)
    for option, value in (options or {}).items():
        if option not in known:
            raise ValueError(
                f"`criterion_args` has `{option}`, which `{name}` does not take.{did_you_mean(option, known)} "
                f"Known: {listed(sorted(known)) or 'none'}."
            )
        _check_value(name, option, value, hints[option])
    return criterion(**(options or {}))


def _checked(name: str, loaded: object) -> type[Criterion]:
    if isinstance(loaded, type) and issubclass(loaded, Criterion) and dataclasses.is_dataclass(loaded):
        return loaded
    raise ValueError(
        f"The entry point of the criterion `{name}` gives {loaded!r}, which is not a dataclass derived from "
        "`hf_spectral_prune.Criterion`. Correct or uninstall the package that offers it."
    )


def _check_value(name: str, option: str, value: object, hint: Any) -> None:
    """An option from JSON may have any type: tell before the run, not from deep inside it."""
    allowed = get_args(hint) if get_origin(hint) is Literal else None
    if allowed is not None:
        if value not in allowed:
            raise ValueError(f"`{option}` of `{name}` is {value!r}. Choose one of {', '.join(map(repr, allowed))}.")
        return
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    accepted = {*kinds, int} if float in kinds else {*kinds}
    # `type`, not `isinstance`: True is an int to Python.
    if accepted <= {bool, int, float, str, types.NoneType} and type(value) not in accepted:
        words = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)
        raise ValueError(f"`{option}` of `{name}` is {value!r}. Give it a value of type {words}.")
