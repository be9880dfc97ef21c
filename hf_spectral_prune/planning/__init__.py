"""Planning: how many units every group keeps, and which."""

from .allocate import Count, Limits, Sizes, parameters_after, per_layer_sizes, share_sizes, sizes_after_round, uniform_sizes
from .budget import Budget, budget_of, macs_per_unit
from .choose import choose_units
from .scored import SCORES_FILE, GroupScores, RoundScores, scores_from_json, scores_to_json, summarise

__all__ = [
    "SCORES_FILE",
    "Budget",
    "Count",
    "GroupScores",
    "Limits",
    "RoundScores",
    "Sizes",
    "budget_of",
    "choose_units",
    "macs_per_unit",
    "parameters_after",
    "per_layer_sizes",
    "scores_from_json",
    "scores_to_json",
    "share_sizes",
    "sizes_after_round",
    "summarise",
    "uniform_sizes",
]
