"""Criteria: weights, moments or statistics of a unit group in, one score per unit out. One file per criterion, one registry."""

from . import activation, energy, fisher, fluctuation, integrated_gradients, magnitude, ndi, obs, random, spectral, taylor
from .base import CRITERIA, Criterion, Diagnostics, GroupData, Scores, Statistics, known_criteria, make_criterion, register
from .score import collect_statistics, score_units, select_statistics

__all__ = [
    "CRITERIA",
    "Criterion",
    "Diagnostics",
    "GroupData",
    "Scores",
    "Statistics",
    "collect_statistics",
    "known_criteria",
    "make_criterion",
    "register",
    "score_units",
    "select_statistics",
]
