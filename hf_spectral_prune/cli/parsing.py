"""Reads a command's recipe and flags into its dataclasses.

transformers is imported late here: a mistyped flag is told before the seconds that it takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from ..arguments import SpectralPruningArguments, preset_options
from ..utils.files import read_within
from ..utils.option_types import fitted
from ..utils.types import Json
from ..utils.words import did_you_mean
from ..utils.yaml_text import load_yaml
from .arguments import RunArguments
from .help import MODEL, help_text
from .screen import quiet_libraries

ALL = " `--help all` lists all."
# What other tools call the same thing.
OTHER_NAMES = {
    "model": MODEL,
    "model_name": MODEL,
    "model_id": MODEL,
    "model_path": MODEL,
    "base_model": MODEL,
    "sparsity": "target_reduction",
    "sparsity_ratio": "target_reduction",
    "pruning_ratio": "target_reduction",
    "prune_ratio": "target_reduction",
    "ratio": "target_reduction",
    "dataset": "dataset_name",
    "dataset_config": "dataset_config_name",
    "split": "dataset_split",
    "token": "hub_token",
    "repo_id": "hub_model_id",
    "output": "output_dir",
    "out": "output_dir",
    "nsamples": "num_calibration_samples",
    "num_samples": "num_calibration_samples",
    "seq_len": "max_seq_length",
    "max_length": "max_seq_length",
    "method": "criterion",
    "batch_size": "calibration_batch_size",
    "iterations": "num_rounds",
}


_OF_PRUNE = {entry.name for options in (SpectralPruningArguments, RunArguments) for entry in dataclasses.fields(options)}


def _hints(types: Iterable[type]) -> dict[str, Any]:
    """{option: its type} of all that a command reads."""
    unread = {name for cls in types for name in getattr(cls, "unread", ())}
    names = {entry.name for cls in types for entry in dataclasses.fields(cls)} - unread
    return {name: hint for cls in types for name, hint in get_type_hints(cls).items() if name in names}


def _parser(types: Sequence[type], command: str, names: Iterable[str]) -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    """The parser of a command that reads the options of these names, and its flags."""
    from transformers import HfArgumentParser

    flags: list[argparse.Action] = []

    class Parser(HfArgumentParser):
        def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
            if args[0].startswith("--") and kwargs.get("dest", args[0].removeprefix("--")) not in names:
                return argparse.Action(args, dest="unread")
            # An option that two of the dataclasses have is one flag.
            known = next((flag for flag in flags if args[0] in flag.option_strings), None)
            if known is not None:
                return known
            flags.append(super().add_argument(*args, **kwargs))
            return flags[-1]

        def error(self, message: str) -> NoReturn:
            raise ValueError(_with_remedy(message))

    parser = Parser(list(types), prog=f"cria {command}", allow_abbrev=False, add_help=False)  # type: ignore[arg-type]
    parser.add_argument("words", nargs="*")
    return parser, flags


def _with_remedy(message: str) -> str:
    """What argparse says of a flag's value, which names the value and not what it should be, in this package's words."""
    flag = re.match(r"argument (--\w+)", message)
    refused = re.search(r"invalid (int|float) value: '(.*)'$", message)
    if flag and refused:
        return f"`{flag[1]}` is {refused[2]!r}. Give a {'whole ' if refused[1] == 'int' else ''}number."
    if flag and (refused := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message)):
        return f"`{flag[1]}` is {refused[1]!r}. Choose from {refused[2].replace(chr(39), '`')}."
    if flag and (refused := re.search(r"Truthy value expected: got (.*) but expected", message)):
        return f"`{flag[1]}` is {refused[1]!r}. Give `True` or `False`."
    if flag and "expected" in message:
        return f"`{flag[1]}` has no value. Give one behind it."
    return message


def parse(types: Sequence[type], command: str, description: str, argv: Sequence[str]) -> list[Any]:
    """Reads the recipe (if any) as defaults, then the flags. The words without a flag are the model and a YAML recipe.

    Raises:
        ValueError: an unknown flag or recipe key (with the nearest name), or a value that cannot work.
        SystemExit: help was asked for, and printed.
    """
    types = list(types)
    hints = _hints(types)
    if not {"-h", "--help"} & set(argv):
        _check_flags((word for word in argv if _looks_unknown(word, hints)), command, hints)
    parser, flags = _parser(types, command, hints)
    if {"-h", "--help"} & set(argv):
        usage = "[MODEL] [recipe.yaml] [--flags]" if MODEL in hints else "[recipe.yaml] [--flags]"
        print(help_text(f"cria {command}", description, usage, flags, whole="all" in argv), end="")
        raise SystemExit(0)
    found, unknown = parser.parse_known_args(list(argv))
    _check_flags(unknown, command, hints)
    model, recipe = _named(found.words, command, takes_model=MODEL in hints)
    written = {} if recipe is None else _read_recipe(recipe, hints)
    preset = getattr(found, "preset", None) or written.get("preset")
    # A flag wins over the recipe, and that over the preset.
    parser.set_defaults(**({} if preset is None else preset_options(preset)) | written)
    found, _ = parser.parse_known_args(list(argv))
    values = vars(found)
    if model is not None:
        if any(word.partition("=")[0] == f"--{MODEL}" for word in argv) and values[MODEL] != model:
            raise ValueError(f"The model is named twice: `{model}` and `--{MODEL} {values[MODEL]}`. Give one of them.")
        values[MODEL] = model
    read = [cls(**{entry.name: values[entry.name] for entry in dataclasses.fields(cls) if entry.name in hints}) for cls in types]
    quiet_libraries()
    return read


def _named(words: Sequence[str], command: str, *, takes_model: bool) -> tuple[str | None, str | None]:
    """The model and the recipe among the words without a flag."""
    recipes = [word for word in words if word.lower().endswith((".yaml", ".yml"))]
    models = [word for word in words if word not in recipes]
    most = 1 if takes_model else 0
    if len(recipes) > 1 or len(models) > most:
        extra = recipes[1] if len(recipes) > 1 else models[most]
        what = "one model and one recipe (.yaml)" if takes_model else "one recipe (.yaml)"
        raise ValueError(f"`{extra}` is too much: `cria {command}` takes {what} beside its flags.")
    return next(iter(models), None), next(iter(recipes), None)


def _looks_unknown(word: str, known: Iterable[str]) -> bool:
    """Whether it is surely no flag; what is doubtful is left to the parser, e.g. a value that begins with dashes."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    return word.startswith("--") and " " not in word and name not in ("", *known) and name.removeprefix("no_") not in known


def _check_flags(unknown: Iterable[str], command: str, known: Iterable[str]) -> None:
    for word in unknown:
        flag = word.partition("=")[0]
        if (own := OTHER_NAMES.get(flag.lstrip("-").replace("-", "_"))) in set(known):
            raise ValueError(f"`{flag}` is called `--{own}` here.")
        near = _near(flag.lstrip("-").replace("-", "_"), known, "--")
        raise ValueError(f"`{flag}` is no flag of `cria {command.removesuffix(' FOLDER')}`.{near}")


def _near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """What to do about an unknown option."""
    if name in _OF_PRUNE:
        return " `cria prune` reads it, and this command does not." + did_you_mean(name, known, prefix, " Leave it out.")
    return did_you_mean(name, known, prefix, ALL)


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


def _read_recipe(path: str, hints: Mapping[str, Any]) -> Json:
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
            own = OTHER_NAMES.get(str(key), "")
            near = f" It is called `{own}` here." if own in hints else _near(str(key), hints)
            raise ValueError(f"The recipe `{path}` has the unknown key `{str(key)[:100]}`.{near}")
    try:
        # Defaults of a parser do not pass through its types.
        return {key: fitted(key, value, hints[key]) for key, value in recipe.items()}
    except ValueError as error:
        raise ValueError(f"The recipe `{path}`: {error}") from None
