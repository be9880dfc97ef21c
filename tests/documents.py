"""The programs and commands that the documents print, for the tests that run them."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from hf_spectral_prune.cli.parsing import parse

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    """Texts of the fenced blocks marked with one language ("" for none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [text for mark, text in found if mark == language]


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """(command, words) of every `cria` line."""
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if line.startswith("cria ")]
    return [(words[1], words[2:]) for words in split]


class Parsed(Exception):
    """A command has read its flags; it need not go on."""


def read_flags(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a command read its words and do no more; raises what it raises for words that it cannot read."""
    module = importlib.import_module(f"hf_spectral_prune.cli.{command}")

    def stop_after_parsing(types, name, description, argv):
        parse(types, name, description, argv)
        raise Parsed

    monkeypatch.setattr(module, "parse", stop_after_parsing)
    with pytest.raises(Parsed):
        module.main(words)
