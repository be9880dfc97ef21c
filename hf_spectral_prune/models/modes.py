"""Training and evaluation mode of a user's models, which come back as they were given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Each part of the models has the mode afterwards that it had before: `train()` would wake frozen batch norms with the rest.

    Parts that came meanwhile take the mode of their whole model.
    """
    before = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
        for model in models:
            for module in set(model.modules()) - before.keys():
                module.training = model.training


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in evaluation mode, and afterwards as they were."""
    with modes_kept(*models):
        for model in models:
            model.eval()
        yield
