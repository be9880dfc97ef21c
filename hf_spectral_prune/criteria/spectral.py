"""Spectral structural importance: participation of a unit in the distortion between two neighbourhood graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from scipy.linalg import LinAlgError
from scipy.sparse.linalg import ArpackError
from torch import Tensor

from ..calibration.signals import Spatial
from ..spectral import Graph, correlation, distortion_spectrum, edge_scores, knn_graph, participation, squared_distances
from .base import Criterion, GroupData, register

# Eigenvalues of a group that are kept for the report.
NUM_SPECTRUM_VALUES = 24


@register("spectral")
@dataclass(frozen=True)
class Spectral(Criterion):
    """The spectral criterion of SSI (arXiv:2605.18860); unless `modes` is set, all modes count.

    Nodes are channels. The input-side graph joins channels of like shape (standardised signals before the layer's
    transformation), the output-side graph channels of like value and energy (uncentred signals after it). With
    Laplacians `L_in` and `B = L_out + shift * mean(diag L_out) * I`, a channel's score is its participation in the
    generalised modes `L_in v = lambda B v`: `sum_k lambda_k v_k[i]^2`. Low: structurally redundant, removed first.

    Options:
        num_neighbors: k of the nearest-neighbour graphs.
        weighting: edge weights, "inverse" (1/D2), "gaussian" or "binary".
        modes: number of dominant modes, or their share of the group's channels if below 1 (0.1: a tenth); None takes all, in
            closed form `diag(B^-1 L_in B^-1)`.
        shift: eps of B.
        input_form: "standardised" (correlation distances), "raw" or "centred".
        output_form: "raw" outputs, "contributions" (outputs weighted by the consumer, second moment * W^T W), "centred",
            "standardised", or "auto": raw for FFN neurons of transformers, contributions for attention heads and for channels.
        signals: "activations", or "loss": outputs multiplied by their loss gradient, whose scores compare across layers.
        aggregate: "node" (participation) or "edge" (SPADE's node score over input-graph neighbours; needs `modes`).
        spatial: the positions of a channel's map that count: "sampled" (a few at random in every image), "pooled" (their mean
            alone) or "all". Tokens always count.
        num_positions: how many are sampled in an image.
    """

    num_neighbors: int = 15
    weighting: Literal["inverse", "gaussian", "binary"] = "inverse"
    modes: int | float | None = None
    shift: float = 1e-3
    input_form: Literal["standardised", "raw", "centred"] = "standardised"
    output_form: Literal["auto", "raw", "contributions", "centred", "standardised"] = "auto"
    signals: Literal["activations", "loss"] = "activations"
    aggregate: Literal["node", "edge"] = "node"
    spatial: Literal["sampled", "pooled", "all"] = "sampled"
    num_positions: int = 16
    needs_moments = True

    def __post_init__(self) -> None:
        if self.num_neighbors < 1:
            raise ValueError(f"`num_neighbors` is {self.num_neighbors}; it must be at least 1.")
        if self.num_positions < 1:
            raise ValueError(f"`num_positions` is {self.num_positions}; it must be at least 1.")
        if self.modes is not None and not (0 < self.modes < 1 or (self.modes >= 1 and self.modes % 1 == 0)):
            raise ValueError(f"`modes` is {self.modes}; give a number of at least 1, or a share between 0 and 1.")
        if self.aggregate == "edge" and self.modes is None:
            raise ValueError('`aggregate="edge"` is defined on dominant modes. Set `modes`, e.g. 20.')

    @property
    def positions(self) -> Spatial:
        """Which positions of a channel's map the moments count."""
        return Spatial(self.spatial, self.num_positions)

    def score(self, data: GroupData) -> Tensor:
        """(n_units,) participation, summed over each unit's channels."""
        if data.group.size == 1:
            return data.consumer.new_zeros(1).double()
        input_graph = knn_graph(self._distances(data.before, self.input_form), self.num_neighbors, self.weighting)
        output_graph = knn_graph(self._output_distances(data), self.num_neighbors, self.weighting)
        modes = self._num_modes(input_graph.num_nodes)
        self._note_spectrum(data, input_graph, output_graph, modes)
        if self.aggregate == "edge":
            assert modes is not None
            per_channel = edge_scores(input_graph, output_graph, modes=modes, shift=self.shift)
        else:
            per_channel = participation(input_graph, output_graph, modes=modes, shift=self.shift, generator=data.generator)
        return data.per_unit(per_channel)

    def _num_modes(self, num_nodes: int) -> int | None:
        """`modes` as a number, for a graph of that many nodes."""
        if self.modes is None:
            return None
        return int(self.modes) if self.modes >= 1 else max(1, round(self.modes * num_nodes))

    def _note_spectrum(self, data: GroupData, input_graph: Graph, output_graph: Graph, modes: int | None) -> None:
        """Leaves the largest generalised eigenvalues, (at most 24,) and at most `modes`, as the diagnostic `spectrum`."""
        if data.diagnostics is None:
            return
        number = min(NUM_SPECTRUM_VALUES, modes or NUM_SPECTRUM_VALUES)
        with suppress(ArpackError, LinAlgError):  # the scores do not depend on it: a spectrum that does not converge is left out
            data.diagnostics["spectrum"] = distortion_spectrum(input_graph, output_graph, number, self.shift).cpu()

    def _output_distances(self, data: GroupData) -> Tensor:
        form = self.output_form
        if form == "auto":
            # The signal times its gradient is already in units of loss: weighting it by the consumer would count that twice.
            form = "contributions" if data.group.kind in ("heads", "channels") and self.signals == "activations" else "raw"
        if form == "contributions":
            return squared_distances(data.after()[1].mul_(data.consumer_gram()))
        return self._distances(data.after, form)

    @staticmethod
    def _distances(side: Callable[[], tuple[Tensor, Tensor]], form: str) -> Tensor:
        mean, raw = side()  # asked for here, so that nobody else holds what is large
        if form == "standardised":
            raw = correlation(raw, mean)
        elif form == "centred":
            raw -= mean[:, None] * mean
        return squared_distances(raw)
