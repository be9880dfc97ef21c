"""Direct ablation: the exact loss increase of removing single units, and how well every criterion's scores agree with it."""

from typing import TYPE_CHECKING

from ...utils.lazy import lazily

if TYPE_CHECKING:
    from .arguments import AblationArguments
    from .folder import FOLDER
    from .results import AblationResult, table, to_dict, verdict, write_results
    from .run import ablate, chosen_groups

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "arguments": ["AblationArguments"],
        "folder": ["FOLDER"],
        "results": ["AblationResult", "table", "to_dict", "verdict", "write_results"],
        "run": ["ablate", "chosen_groups"],
    },
)
