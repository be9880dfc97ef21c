"""Detrimental neurons (arXiv:2507.09185): labelled examples, attribution, search, and the pruner that joins them."""

from .arguments import DetrimentalArguments
from .pruner import DetrimentalNeuronPruner
from .tasks import Example, examples_from_rows, read_examples

__all__ = ["DetrimentalArguments", "DetrimentalNeuronPruner", "Example", "examples_from_rows", "read_examples"]
