"""Planning: how many units every group keeps, and which."""

from .allocate import Limits, Sizes, parameters_after, per_layer_sizes, sizes_after_round, uniform_sizes
from .plan import PruningPlan, choose_units
from .scored import SCORES_FILE, GroupScores, RoundScores, scores_from_json, scores_to_json, summarise

__all__ = [
    "SCORES_FILE",
    "GroupScores",
    "Limits",
    "PruningPlan",
    "RoundScores",
    "Sizes",
    "choose_units",
    "parameters_after",
    "per_layer_sizes",
    "scores_from_json",
    "scores_to_json",
    "sizes_after_round",
    "summarise",
    "uniform_sizes",
]
