"""Several hundred bad inputs through the command line: one line with place and remedy, exit 2, and nothing left behind.

Each is a fault that a user can have: a download or copy that broke off, another program's file, a value of the wrong type in a
file or a flag. A few are harmless, and taken. The rest of them that are not run by default are marked `slow`.
"""

from __future__ import annotations

import hashlib
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bad_checkpoints
import bad_data
import bad_folders
import bad_models
import bad_options
import pytest
from stage import Fault, Stage, write_sources

from hf_spectral_prune.cli import main

OPTIONS = "recipe, flags"
FAMILIES = {
    "weights, config, tokenizer": bad_models,
    "checkpoint": bad_checkpoints,
    OPTIONS: bad_options,
    "text, label, image, GGUF": bad_data,
    "plan, report, state, card": bad_folders,
}
INPUTS = [(family, fault) for family, module in FAMILIES.items() for fault in module.faults()]
LEAST = 600
MOST_SECONDS, MOST_MEMORY = 60, 2**30
# Of every family one input in so many is run by default, evenly spread; all are by `make test-slow`.
ONE_IN = 16
# What a remedy begins with. An option or a recipe is mended by reading its name and its value.
_VERBS = (
    "give|set|take|name|lower|raise|get|use|choose|correct|put|load|install|merge|resume|save|leave|prune|rename|fill|add|check"
)
_VERBS += "|write|make|pass|mend|move|start|change|delete|download|run|begin|clear|export|train|keep|convert"
REMEDY = re.compile(rf"\b({_VERBS})\b|Is it |Did you mean|must|lists all|Known: ", re.IGNORECASE)
PAGE = Path(__file__).parents[2] / "docs" / "faults.md"


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tokenizer) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"), tokenizer)


@pytest.fixture
def stage(tmp_path, sources) -> Iterator[Stage]:
    (tmp_path / "input").mkdir()
    yield Stage(tmp_path / "input", sources)
    shutil.rmtree(tmp_path / "input")


def _cases() -> Iterator:
    for number, (family, fault) in enumerate(INPUTS):
        marks = [] if number % ONE_IN == 0 else [pytest.mark.slow]
        yield pytest.param(family, fault, marks=marks, id=re.sub(r"[^\w .,:=/-]", "", f"{family}: {fault.name}")[:90])


def _files(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.mark.parametrize(("family", "fault"), _cases())
def test_bad_input_is_one_line_and_leaves_nothing(family: str, fault: Fault, stage: Stage, capfd):
    words = fault.make(stage)
    before, peak, start = _files(stage.folder), _peak(), time.monotonic()
    status = main(words)
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("cria")]
    assert time.monotonic() - start < MOST_SECONDS
    assert _peak() - peak < MOST_MEMORY
    assert "Traceback" not in error and len(error) < 20_000
    if fault.harmless:
        assert status == 0, lines
        return
    assert status == 2, lines
    assert len(lines) == 1, error
    for word in fault.says:
        assert word in lines[0]
    what = lines[0].partition(": ")[2]
    assert REMEDY.search(re.sub("`[^`]*`", "", what)) or (family == OPTIONS and "`" in what), what
    assert "please report" not in lines[0]
    assert not re.search(r"(?<!\.)\.\.(\s|$)", what), what
    assert _files(stage.folder) == before


@pytest.mark.slow
def test_inputs_are_as_many_and_as_different_as_they_are_said_to_be(sources, tmp_path):
    digests = set()
    for number, (_, fault) in enumerate(INPUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = fault.make(Stage(folder, sources))
        digest = hashlib.sha256(repr([word.replace(str(folder), "") for word in words]).encode())
        for path in sorted(folder.rglob("*")):
            what = path.readlink().name.encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"a folder"
            digest.update(repr((str(path.relative_to(folder)), hashlib.sha256(what).hexdigest())).encode())
        digests.add(digest.hexdigest())
        shutil.rmtree(folder)
    assert len(digests) == len(INPUTS) >= LEAST
    assert len({fault.name for _, fault in INPUTS}) > LEAST


def test_table_in_the_documentation_is_that_of_the_inputs():
    counts = {family: sum(of == family for of, _ in INPUTS) for family in FAMILIES}
    rows = [f"| {family} | {count} |" for family, count in counts.items()] + [f"| total | {len(INPUTS)} |"]
    assert "\n".join(rows) in PAGE.read_text(encoding="utf-8"), "\n".join(rows)
