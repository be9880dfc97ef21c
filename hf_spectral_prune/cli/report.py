"""`cria report`: rewrites the report page of a saved folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .parsing import parse, take_folder


def main(argv: Sequence[str]) -> None:
    """Rewrites report.html and its plots from the figures in the folder of a pruned model or of a comparison."""
    folder, words = take_folder("report", argv)
    parse([], "report FOLDER", main.__doc__ or "", words)
    assert folder is not None
    from ..publishing.report.write import write_report
    from ..publishing.saved_folder import REPORT
    from ..studies.comparison.folder import RESULTS

    if (Path(folder) / RESULTS[0]).is_file() and not (Path(folder) / REPORT).is_file():
        from ..studies.comparison.report import write_comparison_report

        print(f"Wrote {write_comparison_report(folder)}")
    else:
        print(f"Wrote {write_report(folder)}")
