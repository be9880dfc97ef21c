"""The true damage of single units: the loss without a unit minus the loss with all, exactly, for a sample of units."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ...models.families import UnitGroup
from ...models.losses import Batch, num_targets, predicts_next_token
from ...planning.damage import SuffixLoss
from ...utils.progress import stage
from .folder import read_fields, truth_path, write_record
from .statistics import Array, mean_change, reliability, shift, standard_error

# Seconds between two writes of a group's file: what a killed run loses at most.
_WRITE_EVERY = 2.0


@dataclass(frozen=True)
class Damage:
    """True damage of a sample of one group's units.

    Attributes:
        group: the group.
        units: the units' indices in the group, ascending.
        sums: (m, B) change of the summed loss of every batch without the unit, in nats, signed.
        targets: (B,) number of targets of every batch.
        clean: mean loss of a target with all units, in nats.
        seconds: time that measuring took.
        seed: of the random halves that the reliability is taken over.
    """

    group: UnitGroup
    units: list[int]
    sums: Array
    targets: Array
    clean: float
    seconds: float
    seed: int

    @cached_property
    def mean(self) -> Array:
        """(m,) change of the mean loss of a target, in nats; below zero where the model is better without the unit."""
        return mean_change(self.sums, self.targets)

    @cached_property
    def shift(self) -> Array:
        """(m,) how far the mean loss of a batch moves without the unit, whichever way: root mean square, in nats."""
        return shift(self.sums, self.targets)

    @cached_property
    def standard_error(self) -> Array | None:
        """(m,) standard error of `mean` over batches; None for a single batch."""
        return standard_error(self.sums, self.targets)

    @cached_property
    def reliability(self) -> float | None:
        """See `statistics.reliability`."""
        return reliability(self.sums, self.targets, self.seed)

    @cached_property
    def shift_reliability(self) -> float | None:
        """The same for `shift`."""
        return reliability(self.sums, self.targets, self.seed, shift)


def sample_units(group: UnitGroup, number: int, seed: int) -> list[int]:
    """Indices of `number` units of a group drawn at random (all where it has no more), ascending.

    A larger sample with the same seed holds the smaller one, and a group's sample does not depend on the other groups.
    """
    digest = hashlib.sha256(f"{seed}/{group.key}/sample".encode()).digest()
    order = torch.randperm(group.size, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    return sorted(order[:number].tolist())


def loss_batches(model: PreTrainedModel, batches: Iterable[Batch]) -> list[Batch]:
    """The batches over which the damage is known separately: single sequences of text, else the batches as they are.

    A task head's loss is a mean over its batch, which cannot be told apart. Batches without targets are left out.
    """
    if predicts_next_token(model):
        batches = ({name: value[i : i + 1] for name, value in batch.items()} for batch in batches for i in range(_rows(batch)))
    return [batch for batch in batches if num_targets(model, batch)]


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def measure_damage(
    model: PreTrainedModel,
    samples: Sequence[tuple[UnitGroup, list[int]]],
    batches: Sequence[Batch],
    folder: str,
    *,
    seed: int,
    progress: bool = True,
) -> Iterator[Damage]:
    """True damage of a sample of units for every group; units that the folder holds are not measured again.

    Every unit is masked alone, which is the same as cutting it, and only its layer and those after it are re-run.

    Args:
        samples: (group, indices of its units) pairs.
        batches: see `loss_batches`.
    """
    known = {group.key: _read(folder, group, batches) for group, _ in samples}
    missing = {group.key: [unit for unit in units if unit not in known[group.key].sums] for group, units in samples}
    loss = None
    if any(missing.values()):
        loss = SuffixLoss(model, batches, {group.layer for group, _ in samples if missing[group.key]})
    with stage("Ablating", total=sum(map(len, missing.values())), unit="units", show=progress) as bar:
        for group, units in samples:
            found = known[group.key]
            if loss is not None:
                bar.set_postfix_str(group.key, refresh=False)
                _measure(loss, group, missing[group.key], found, folder, bar)
            sums = np.array([found.sums[unit] for unit in units])
            yield Damage(group, units, sums, np.array(found.targets), found.clean, found.seconds, seed)


@dataclass
class _Known:
    """What is known of one group: the content of its file."""

    sums: dict[int, list[float]]
    targets: list[float]
    clean: float
    seconds: float


def _read(folder: str, group: UnitGroup, batches: Sequence[Batch]) -> _Known:
    record = read_fields(truth_path(folder, group.key), [entry.name for entry in fields(_Known)])
    if record is None:
        return _Known({}, [], 0.0, 0.0)
    sums = {int(unit): values for unit, values in record["sums"].items() if len(values) == len(batches)}
    return _Known(sums, record["targets"], record["clean"], record["seconds"])


def _measure(loss: SuffixLoss, group: UnitGroup, units: Sequence[int], found: _Known, folder: str, bar: tqdm) -> None:
    """Adds the damage of `units` to what is known of the group, and writes it as it comes."""
    found.targets, found.clean = loss.targets.tolist(), loss.clean
    everything = torch.arange(group.size)
    before, began = found.seconds, time.perf_counter()
    written = began
    for unit in units:
        sums = loss.sums(group.layer, {group.key: everything[everything != unit]}) - loss.clean_sums
        if not bool(torch.isfinite(sums).all()):
            raise ValueError(
                f"The loss without unit {unit} of `{group.key}` is not finite. Load the model in a wider `dtype` (float32) or "
                "check its weights."
            )
        found.sums[unit] = sums.tolist()
        found.seconds = before + time.perf_counter() - began
        bar.update()
        if unit == units[-1] or time.perf_counter() - written > _WRITE_EVERY:
            write_record(truth_path(folder, group.key), vars(found))
            written = time.perf_counter()
