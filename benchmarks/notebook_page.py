"""The page of the site that shows the notebook, `docs/first_prune.md`.

python benchmarks/notebook_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def as_markdown(notebook: dict[str, Any]) -> str:
    """The cells one after the other, programs as blocks; links lead from the page's folder."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text.replace("](../", "](") if cell["cell_type"] == "markdown" else f"```py\n{text}\n```")
    title, *rest = parts
    link = "[This page as a notebook](notebooks/first_prune.ipynb)"
    return "\n\n".join([title, f"{link}: its cells are run by the tests.", *rest]) + "\n"


def main() -> None:
    """Writes the page."""
    notebook = json.loads((DOCS / "notebooks" / "first_prune.ipynb").read_text(encoding="utf-8"))
    (DOCS / "first_prune.md").write_text(as_markdown(notebook), encoding="utf-8")


if __name__ == "__main__":
    main()
