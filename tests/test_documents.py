"""The programs of the README and of the pages in docs/ run as printed, and their commands and files exist."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import tiny_encoder, tiny_model
from documents import DOCUMENTS, ROOT, blocks, commands, read_flags
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_spectral_prune.arguments import RunArguments, SpectralPruningArguments
from hf_spectral_prune.criteria import CRITERIA

README = ROOT / "README.md"
PROGRAMS = [(document.name, index) for document in DOCUMENTS for index in range(len(blocks(document, "python")))]
COMMAND_LINES = [(document.name, *line) for document in DOCUMENTS for line in commands(document)]


@pytest.fixture
def models(tmp_path, tokenizer, monkeypatch):
    """A working folder with the models that the programs name."""
    tiny_model(intermediate_size=256).save_pretrained(tmp_path / "llama")
    tiny_encoder("bert", intermediate_size=256).save_pretrained(tmp_path / "bert")
    for name in ("llama", "bert"):
        tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    known = dict(CRITERIA)
    yield tmp_path
    CRITERIA.clear()
    CRITERIA.update(known)


@pytest.mark.parametrize(("name", "index"), PROGRAMS)
def test_programs_run_and_leave_folders_that_load(name, index, models):
    (document,) = [document for document in DOCUMENTS if document.name == name and len(blocks(document, "python")) > index]
    program = blocks(document, "python")[index]
    exec(compile(program.replace("path/to/", ""), name, "exec"), {"__name__": "__main__"})
    for folder in {"cria", "cria-recovered", "bert-pruned"} & {path.name for path in models.iterdir()}:
        auto = AutoModelForSequenceClassification if folder == "bert-pruned" else AutoModelForCausalLM
        auto.from_pretrained(models / folder)


@pytest.mark.parametrize(("name", "command", "words"), COMMAND_LINES)
def test_commands_and_their_flags_exist(name, command, words, monkeypatch):
    read_flags(command, words, monkeypatch)


def test_recipes_on_the_pages_have_known_keys():
    recipes = [yaml.safe_load(text) for document in DOCUMENTS for text in blocks(document, "yaml")]
    known = {*SpectralPruningArguments.__dataclass_fields__, *RunArguments.__dataclass_fields__}
    assert recipes
    assert all(set(recipe) <= known for recipe in recipes)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files(document):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_options_in_the_table_exist():
    rows = [row for row in README.read_text(encoding="utf-8").splitlines() if row.startswith("|")]
    flags = {flag for row in rows for flag in re.findall(r"`--(\w+)", row)}
    assert flags
    assert flags <= {*SpectralPruningArguments.__dataclass_fields__, *RunArguments.__dataclass_fields__}


def test_files_of_the_layout_exist():
    (tree,) = [block for block in blocks(README, "") if "hf_spectral_prune/" in block]
    for line in filter(str.strip, tree.splitlines()):
        name = line.split()[0]
        folder = ROOT / "hf_spectral_prune" if line.startswith(" ") else ROOT
        assert (folder / name).exists(), name


def test_scripts_that_the_pages_name_exist():
    named = re.findall(r"`(\w+\.py)`", (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8"))
    assert named
    assert all((ROOT / "benchmarks" / name).is_file() for name in named)
