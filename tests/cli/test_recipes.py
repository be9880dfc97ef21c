"""Every recipe is read by the command that its first line names, and loses nothing on the way."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_spectral_prune.cli.parsing import parse

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


class Read(Exception):
    """A command has read its recipe; it need not go on."""


def first_line(recipe: Path) -> list[str]:
    """The words of the command that the recipe's first line gives."""
    return shlex.split(recipe.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))


def read(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The values that a command reads from its words."""
    module = importlib.import_module(f"hf_spectral_prune.cli.{command}")
    found: dict[str, Any] = {}

    def keep(types: Any, name: str, description: str, argv: Any) -> Any:
        for value in parse(types, name, description, argv):
            found.update({entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)})
        raise Read

    monkeypatch.setattr(module, "parse", keep)
    with pytest.raises(Read):
        module.main(words)
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_recipe_is_read_as_written(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    program, command, name, *rest = first_line(recipe)
    assert (program, name, rest) == ("cria", f"recipes/{recipe.name}", [])
    found = read(command, [str(recipe)], monkeypatch)
    for key, value in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
        assert found[key] == value, key


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_misspelt_key_is_an_error_that_names_the_right_one(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changed = tmp_path / recipe.name
    changed.write_text(recipe.read_text(encoding="utf-8").replace("\noutput_dir:", "\noutput_dri:"), encoding="utf-8")
    module = importlib.import_module(f"hf_spectral_prune.cli.{first_line(recipe)[1]}")
    with pytest.raises(ValueError, match=r"unknown key `output_dri`.*output_dir"):
        module.main([str(changed)])


def test_there_are_recipes():
    assert RECIPES
