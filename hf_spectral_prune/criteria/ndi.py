"""Neural differentiation index: diversity x informativeness x sensitivity, times the weights' norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from ..calibration import GroupMoments
from ..calibration.signals import Spatial
from ..models.families import UnitGroup
from ..models.losses import Batch
from ..spectral import correlation
from .base import Criterion, GroupData, Scores, Statistics, register
from .passes import ndi_terms as differentiation
from .passes.curvature import unit_curvature
from .passes.histograms import channel_histograms
from .passes.ndi_bounds import note_bounds


@dataclass(frozen=True)
class Components:
    """The three parts of a group's index before normalisation over the network, (n_units,) each in [0, 1].

    Attributes:
        diversity: how little a unit shares the layer's leading modes of correlation, `1 - phi` after min-max.
        informativeness: entropy of its output over the layer's bins, in units of ln B.
        sensitivity: curvature of the loss along its weights, after min-max.
    """

    diversity: Tensor
    informativeness: Tensor
    sensitivity: Tensor


@register("ndi")
@dataclass(frozen=True)
class NeuralDifferentiation(Criterion):
    """Importance of Wang and Jiang, "Neural Differentiation in Deep Networks" (CVPR 2026), eq. 5-22 and 35-36.

    Signals are the units' outputs, taken per position; a unit of several channels takes the mean of its channels. See
    `differentiation` for the formulas. Scores compare across layers.

    Options:
        trace_share: the leading modes of diversity hold this share of the trace (eq. 38); None takes the modes that more
            than one channel shares (eigenvalue above 1), see `redundancy`.
        shrinkage: of the correlation matrix towards the identity; None estimates it.
        num_bins: B of the entropy.
        smoothing: alpha of the entropy.
        num_probes: m of Hutchinson's estimate, for each sequence.
        num_curvature_sequences: calibration sequences that the estimate is made on (each costs two backward passes a probe).
        p, q, r: exponents of diversity, informativeness and sensitivity (eq. 22).
        floor: eps_f, added to each component.
        norms: the weights W_c of a unit, whose norm counts (eq. 35): "all" that leave with it, or those of its "producers" alone.
        spatial: the positions of a channel's map that count: "pooled" (their mean alone, as in the paper), "sampled" (a few at
            random in every image) or "all".
        num_positions: how many are sampled in an image.
    """

    trace_share: float | None = 0.9
    shrinkage: float | None = None
    num_bins: int = 32
    smoothing: float = 1.0
    num_probes: int = 4
    num_curvature_sequences: int = 8
    p: float = 1.0
    q: float = 1.0
    r: float = 1.0
    floor: float = 1e-3
    norms: Literal["all", "producers"] = "all"
    spatial: Literal["sampled", "pooled", "all"] = "pooled"
    num_positions: int = 16
    needs_moments = True
    sides = ("after",)
    needs_statistics = True
    needs_loss = True

    def __post_init__(self) -> None:
        if self.trace_share is not None and not 0 < self.trace_share < 1:
            raise ValueError(
                f"`trace_share` of `ndi` is {self.trace_share}; it must lie between 0 and 1: with all modes every unit is as "
                "diverse as any other."
            )
        if self.shrinkage is not None and not 0 <= self.shrinkage < 1:
            raise ValueError(f"`shrinkage` of `ndi` is {self.shrinkage}; it must be at least 0 and below 1.")
        if self.num_bins < 2:
            raise ValueError(f"`num_bins` of `ndi` is {self.num_bins}; an entropy needs at least 2 bins.")
        if min(self.num_probes, self.num_curvature_sequences, self.num_positions) < 1:
            raise ValueError("`num_probes`, `num_curvature_sequences` and `num_positions` of `ndi` must be at least 1.")
        if self.smoothing <= 0 or self.floor <= 0:
            raise ValueError("`smoothing` and `floor` of `ndi` must be above 0.")

    @property
    def positions(self) -> Spatial:
        """Which positions of a channel's map the moments and histograms count."""
        return Spatial(self.spatial, self.num_positions)

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
        """`informativeness` and `curvature` (n_units,) of every group."""
        # The curvature first: it is what can be refused.
        curvature = unit_curvature(
            model,
            groups,
            batches,
            num_probes=self.num_probes,
            num_sequences=self.num_curvature_sequences,
            seed=seed,
            progress=progress,
        )
        spatial = replace(self.positions, seed=seed)
        counts = channel_histograms(model, groups, batches, moments, self.num_bins, spatial=spatial, progress=progress)
        statistics = {}
        for group in groups:
            per_channel = differentiation.informativeness(counts[group.key], self.smoothing)
            statistics[group.key] = {
                "informativeness": per_channel.reshape(group.size, -1).mean(dim=1),
                "curvature": curvature[group.key],
            }
        return statistics

    def components(self, data: GroupData) -> Components:
        """Diversity, informativeness and sensitivity of one group's units, on the CPU."""
        mean, raw = data.after()
        count = data.moments.after.count if data.moments is not None else 0
        shrunk = differentiation.shrink(correlation(raw, mean), count, self.shrinkage)
        if data.diagnostics is not None:
            note_bounds(data.diagnostics, shrunk, self._unit_norms(data), self.trace_share)
        redundancy = differentiation.redundancy(shrunk, self.trace_share).cpu().reshape(data.group.size, -1).mean(dim=1)
        return Components(
            diversity=1 - differentiation.min_max(redundancy),
            informativeness=data.statistics["informativeness"].double(),
            sensitivity=differentiation.min_max(data.statistics["curvature"].double()),
        )

    def score_all(self, groups: Iterable[GroupData]) -> Scores:
        """{group key: importance}: NDI of the normalised components times the relative weight norm (eq. 36)."""
        keys, parts, norms = [], [], []
        for data in groups:
            keys.append(data.group.key)
            parts.append(self.components(data))
            norms.append(differentiation.relative_norms(self._unit_norms(data)).cpu())
        return {key: norm * index for key, norm, index in zip(keys, norms, self.indices(parts), strict=True)}

    def _unit_norms(self, data: GroupData) -> Tensor:
        return data.producer_norms() if self.norms == "producers" else data.unit_norms()

    def indices(self, parts: Sequence[Components]) -> list[Tensor]:
        """NDI (n_units,) of every group, its components normalised over all these groups (eq. 12-16 and 22)."""
        diversity = differentiation.normalise([part.diversity for part in parts])
        informativeness = differentiation.normalise([part.informativeness for part in parts])
        sensitivity = differentiation.normalise([part.sensitivity for part in parts])
        exponents = (self.p, self.q, self.r)
        return [
            differentiation.ndi(d, u, s, exponents, self.floor)
            for d, u, s in zip(diversity, informativeness, sensitivity, strict=True)
        ]

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) importance, normalised over this group alone."""
        return self.score_all([data])[data.group.key]
