"""Direct ablation: the exact loss increase of removing single units, and how well every criterion's scores agree with it."""

from .arguments import AblationArguments
from .folder import FOLDER
from .results import AblationResult, table, to_dict, verdict, write_results
from .run import ablate, chosen_groups

__all__ = [
    "FOLDER",
    "AblationArguments",
    "AblationResult",
    "ablate",
    "chosen_groups",
    "table",
    "to_dict",
    "verdict",
    "write_results",
]
