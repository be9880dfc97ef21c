"""The imports of the package are those that the table of docs/architecture.md allows."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT

PACKAGE = ROOT / "hf_spectral_prune"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# A script that loads a saved folder in a process of its own; it imports the package by design, and nothing imports it.
SCRIPT = "saving/selfcheck.py"
EVERYWHERE = {"utils", "arguments"}


def rows() -> dict[str, str]:
    """Subpackage -> the words of the column "may import", from the bottom of the house up."""
    (table,) = re.findall(r"^\| subpackage \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
    return {name.strip("`"): words for name, _, words in cells}


ROWS = rows()


def allowed(row: str) -> set[str]:
    """The rows that a row may import, itself left out."""
    words, names = ROWS[row], list(ROWS)
    below = set(names[: names.index(row)])
    if words == "nothing of this package":
        return set()
    if words.startswith("everything above"):
        return below - set(re.findall(r"`([\w/]+)`", words))
    named = set(re.findall(r"`([\w/]+)`", words))
    inner = {name for name in ROWS if name.partition("/")[0] in named}
    return named | inner | (EVERYWHERE & below)


def row_of(parts: tuple[str, ...]) -> str:
    """The row of a module, named by its parts below the package."""
    return "/".join(parts[:2]) if "/".join(parts[:2]) in ROWS else parts[0]


def modules() -> dict[tuple[str, ...], Path]:
    """Every module of the package but its own `__init__`, which imports all, and the script."""
    files = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    return {parts: path for parts, path in files.items() if parts != ("__init__",) and path != PACKAGE / SCRIPT}


def imports(parts: tuple[str, ...], path: Path) -> Iterator[tuple[str, ...]]:
    """The dotted names that a module imports anywhere in it, split; relative ones spelt out."""
    package = (PACKAGE.name, *parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = above + tuple((node.module or "").split(".") if node.module else ())
            yield from ((*start, name.name) for name in node.names)


def test_every_subpackage_has_its_row():
    names = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert names - {"__init__"} == {name for name in ROWS if "/" not in name}
    assert all((PACKAGE / name).is_dir() for name in ROWS if "/" in name)


def test_rows_name_rows_above_them_only():
    """So that there can be no cycle."""
    for row in ROWS:
        assert allowed(row) <= set(list(ROWS)[: list(ROWS).index(row)]), row


@pytest.mark.parametrize("row", ROWS)
def test_a_subpackage_imports_what_its_row_allows(row):
    may = allowed(row) | {row}
    for parts, path in modules().items():
        if row_of(parts) == row:
            inside = [name[1:] for name in imports(parts, path) if name[0] == PACKAGE.name]
            wrong = {row_of(name) for name in inside if name} - may - {"__version__"}
            assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize(
    ("row", "libraries"),
    [("spectral", {"torch", "numpy", "scipy"}), ("models/cria", {"torch", "transformers", "huggingface_hub"})],
)
def test_some_import_few_libraries(row, libraries):
    for parts, path in modules().items():
        if row_of(parts) == row:
            outside = {name[0] for name in imports(parts, path)} - {PACKAGE.name} - sys.stdlib_module_names
            assert outside <= libraries, path.relative_to(ROOT)
