"""The `cria` command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..utils.words import did_you_mean
from .errors import told

# name -> what it does; each is a module beside this one with a function `main(argv)`, imported when it is called.
COMMANDS = {
    "prune": "Prunes a model and saves it, with its plan and report.",
    "score": "Scores every unit of a model and writes the scores as JSON.",
    "evaluate": "Measures held-out perplexity, size and speed of a model; prints JSON.",
    "compare": "Compares criteria on one model: a table, JSON, CSV and a plot; a killed run continues.",
    "ablate": "Measures what removing single units really costs, and how well each criterion foretells it.",
    "card": "Writes the model card of a pruned folder anew, or brings it up to date.",
    "report": "Writes the report page of a pruned folder or a comparison anew.",
    "export": "Writes a model folder as GGUF (llama.cpp) or ONNX.",
    "push": "Pushes a pruned folder to the Hub, in one commit.",
    "detrimental": "Removes neurons that make a model confident without making it right, found on ten labelled examples.",
    "demo": "Prunes SmolLM2-135M-Instruct by 20 % and prints a before/after table.",
}


def _usage() -> str:
    rows = "\n".join(f"  {name:12}{purpose}" for name, purpose in COMMANDS.items())
    hint = "`cria COMMAND --help` explains every flag, `cria --version` tells the version."
    return f"usage: cria COMMAND [recipe.yaml] [--flags]\n\n{rows}\n\n{hint}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; or after one line on stderr 2 for input that cannot work and 1 for a run that failed (see `told`). With
        `CRIA_TRACEBACK=1` in the environment the exception is raised instead.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"cria {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(
            f"cria: `{words[0]}` is no command.{did_you_mean(words[0], COMMANDS, otherwise=' `--help` lists all.')}",
            file=sys.stderr,
        )
        return 2
    try:
        importlib.import_module(f".{words[0]}", __package__).main(words[1:])
    except Exception as error:
        if os.environ.get("CRIA_TRACEBACK"):
            raise
        line, status = told(error)
        print(f"cria {words[0]}: {line}", file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
