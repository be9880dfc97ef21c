"""Direct ablation: the exact loss increase of removing single units, and how well every criterion's scores agree with it."""

from .arguments import AblationArguments
from .folder import check_folder
from .results import AblationResult, table, to_dict, write_results
from .run import ablate, chosen_groups

__all__ = [
    "AblationArguments",
    "AblationResult",
    "ablate",
    "check_folder",
    "chosen_groups",
    "table",
    "to_dict",
    "write_results",
]
