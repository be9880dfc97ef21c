"""Detrimental neurons (arXiv:2507.09185): labelled examples, attribution, search, and the pruner that joins them."""

from typing import TYPE_CHECKING

from ...utils.lazy import lazily

if TYPE_CHECKING:
    from .arguments import DetrimentalArguments
    from .pruner import DetrimentalNeuronPruner
    from .tasks import Example, examples_from_rows, read_examples

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "arguments": ["DetrimentalArguments"],
        "pruner": ["DetrimentalNeuronPruner"],
        "tasks": ["Example", "examples_from_rows", "read_examples"],
    },
)
