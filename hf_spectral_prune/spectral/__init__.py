"""Neighbour graphs of unit signals and the spectral distortion between two of them."""

from __future__ import annotations

from .distortion import distortion_spectrum, dominant_modes, edge_scores, participation
from .graphs import Graph, correlation, knn_graph, squared_distances

__all__ = [
    "Graph",
    "correlation",
    "distortion_spectrum",
    "dominant_modes",
    "edge_scores",
    "knn_graph",
    "participation",
    "squared_distances",
]
