"""Comparison of criteria: what to compare, the run that continues cell by cell, and its table, files and plot."""

from typing import TYPE_CHECKING

from ...utils.lazy import lazily

if TYPE_CHECKING:
    from .arguments import Cell, ComparisonArguments, comparison_cells
    from .folder import FOLDER
    from .plot import draw
    from .results import Comparison, block_name, check_equal_parameters, parameter_range, table, to_dict, verdict, write_results
    from .run import compare

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "arguments": ["Cell", "ComparisonArguments", "comparison_cells"],
        "folder": ["FOLDER"],
        "plot": ["draw"],
        "results": [
            "Comparison",
            "block_name",
            "check_equal_parameters",
            "parameter_range",
            "table",
            "to_dict",
            "verdict",
            "write_results",
        ],
        "run": ["compare"],
    },
)
