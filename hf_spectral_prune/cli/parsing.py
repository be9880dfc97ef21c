"""Reads a command's recipe and flags into its dataclasses.

transformers is imported late here: a mistyped flag is told before the seconds that it takes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from ..utils.files import read_within
from ..utils.option_types import fitted
from ..utils.words import did_you_mean
from ..utils.yaml_text import load_yaml

ALL = " `--help` lists all."


def _fail(message: str) -> NoReturn:
    raise ValueError(message)


def _parser(types: Sequence[Any], command: str, description: str) -> argparse.ArgumentParser:
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        list(types),
        prog=f"cria {command}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.error = _fail  # type: ignore[method-assign]
    parser.add_argument("recipe", nargs="?", help="YAML file with the same names as the flags; flags win.")
    return parser


def parse(types: Sequence[Any], command: str, description: str, argv: Sequence[str]) -> list[Any]:
    """Reads the recipe (if any) as defaults, then the flags.

    Raises:
        ValueError: an unknown flag or recipe key (with the nearest name), or a value that cannot work.
    """
    hints = {name: hint for cls in types for name, hint in get_type_hints(cls).items()}
    if not {"-h", "--help"} & set(argv):
        _check_flags((word for word in argv if _looks_unknown(word, hints)), command, hints)
    parser = _parser(types, command, description)
    found, unknown = parser.parse_known_args(list(argv))
    _check_flags(unknown, command, hints)
    if found.recipe is not None:
        parser.set_defaults(**_read_recipe(found.recipe, hints))
        found, _ = parser.parse_known_args(list(argv))
    values = vars(found)
    return [cls(**{entry.name: values[entry.name] for entry in dataclasses.fields(cls)}) for cls in types]


def _looks_unknown(word: str, known: Iterable[str]) -> bool:
    """Whether it is surely no flag; what is doubtful is left to the parser, e.g. a value that begins with dashes."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    return word.startswith("--") and " " not in word and name not in ("", *known) and name.removeprefix("no_") not in known


def _check_flags(unknown: Iterable[str], command: str, known: Iterable[str]) -> None:
    for word in unknown:
        flag = word.partition("=")[0]
        near = did_you_mean(flag.lstrip("-").replace("-", "_"), known, "--", ALL)
        raise ValueError(f"`{flag}` is no flag of `cria {command}`.{near}")


def take_folder(command: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Splits off the folder that a command names first: `cria COMMAND FOLDER [recipe.yaml] [--flags]`.

    Returns:
        the folder (None where help is asked for), and the other words.

    Raises:
        ValueError: there is none.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if "-h" in words or "--help" in words:
        return None, words
    raise ValueError(f"There is no folder. Write `cria {command} FOLDER`, with the folder first.")


def _read_recipe(path: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"The recipe `{path}` does not exist.")
    text = read_within(file)
    try:
        recipe = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"The recipe `{path}` cannot be read: {error}.") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe `{path}` must be a list of `name: value` lines.")
    for key in recipe:
        if key not in hints:
            raise ValueError(
                f"The recipe `{path}` has the unknown key `{str(key)[:100]}`.{did_you_mean(str(key), hints, otherwise=ALL)}"
            )
    try:
        # Defaults of a parser do not pass through its types.
        return {key: fitted(key, value, hints[key]) for key, value in recipe.items()}
    except ValueError as error:
        raise ValueError(f"The recipe `{path}`: {error}") from None
