"""Comparison of criteria: what to compare, the run that continues cell by cell, and its table, files and plot."""

from .arguments import Cell, ComparisonArguments, comparison_cells
from .folder import FOLDER
from .plot import draw
from .results import Comparison, block_name, check_equal_parameters, parameter_range, table, to_dict, verdict, write_results
from .run import compare

__all__ = [
    "FOLDER",
    "Cell",
    "Comparison",
    "ComparisonArguments",
    "block_name",
    "check_equal_parameters",
    "compare",
    "comparison_cells",
    "draw",
    "parameter_range",
    "table",
    "to_dict",
    "verdict",
    "write_results",
]
