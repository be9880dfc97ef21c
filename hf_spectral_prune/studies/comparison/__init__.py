"""Comparison of criteria: what to compare, the run that continues cell by cell, and its table, files and picture."""

from .arguments import Cell, ComparisonArguments, comparison_cells
from .folder import check_folder
from .plot import draw
from .results import Comparison, block_name, check_equal_parameters, parameter_range, table, to_dict, write_results
from .run import compare

__all__ = [
    "Cell",
    "Comparison",
    "ComparisonArguments",
    "block_name",
    "check_equal_parameters",
    "check_folder",
    "compare",
    "comparison_cells",
    "draw",
    "parameter_range",
    "table",
    "to_dict",
    "write_results",
]
