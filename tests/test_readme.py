"""The README's programs run as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import tiny_encoder, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_spectral_prune.arguments import RunArguments, SpectralPruningArguments
from hf_spectral_prune.cli import COMMANDS
from hf_spectral_prune.commands.parsing import parse

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Texts of the fenced blocks marked with one language ("" for none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for mark, text in found if mark == language]


@pytest.mark.parametrize("program", blocks("python"), ids=["prune", "callback", "recover"])
def test_python_programs_run_and_leave_folders_that_load(program, tmp_path, tokenizer, monkeypatch):
    tiny_model(intermediate_size=256).save_pretrained(tmp_path / "llama")
    tiny_encoder("bert", intermediate_size=256).save_pretrained(tmp_path / "bert")
    for name in ("llama", "bert"):
        tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(program.replace("path/to/", ""), "README.md", "exec"), {})
    (folder,) = {"cria", "cria-recovered", "bert-pruned"} & {path.name for path in tmp_path.iterdir()}
    auto = AutoModelForSequenceClassification if folder == "bert-pruned" else AutoModelForCausalLM
    auto.from_pretrained(tmp_path / folder)


def test_commands_and_their_flags_exist():
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines() if line.startswith("cria ")]
    assert lines
    for line in lines:
        _, command, *words = shlex.split(line, comments=True)
        assert command in COMMANDS
        parse([SpectralPruningArguments, RunArguments], command, "", words)


def test_options_in_the_table_exist():
    flags = {flag for row in README.splitlines() if row.startswith("|") for flag in re.findall(r"`--(\w+)", row)}
    known = {*SpectralPruningArguments.__dataclass_fields__, *RunArguments.__dataclass_fields__}
    assert flags
    assert flags <= known


def test_files_of_the_layout_exist():
    (tree,) = [block for block in blocks("") if "hf_spectral_prune/" in block]
    root = Path(__file__).parent.parent
    for line in filter(str.strip, tree.splitlines()):
        name = line.split()[0]
        folder = root / "hf_spectral_prune" if line.startswith(" ") else root
        assert (folder / name).exists(), name
