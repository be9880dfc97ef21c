"""What two networks compute alike in spite of a cut: outputs of the parts whose width the cut left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.losses import moved_to
from ..models.modes import evaluating
from ..utils.types import Options


@contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While open, the dictionary is filled with what these submodules return, where it is a tensor of numbers."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _given: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found[name] = output

        return keep

    handles = [model.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def shared_parts(student: PreTrainedModel, teacher: PreTrainedModel, inputs: Options) -> list[str]:
    """Names of the parts that return tensors of the same shape in both networks, the logits aside.

    Parts made of other modules (the blocks of a ResNet) go before single layers, which are taken only where no block matches.
    Of parts that hand on the same tensor the outermost is named.

    Args:
        inputs: of one batch, without labels; neither network is changed by it.
    """
    own, other = _outputs(student, inputs), _outputs(teacher, inputs)
    alike = [name for name, value in own.items() if name in other and value.shape == other[name].shape]
    blocks = [name for name in alike if any(student.get_submodule(name).children())]
    return blocks or alike


@torch.no_grad()
def _outputs(model: PreTrainedModel, inputs: Options) -> dict[str, Tensor]:
    # In evaluation mode no running statistics move.
    with evaluating(model), captured(model, (name for name, _ in model.named_modules() if name)) as found:
        outputs = model(**moved_to(model, inputs))
    seen = {id(value) for value in outputs.values()}
    distinct = {}
    for name, value in reversed(found.items()):  # outer modules return last
        if id(value) not in seen:
            seen.add(id(value))
            distinct[name] = value
    return dict(reversed(distinct.items()))


def feature_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Mean over parts of `|student - teacher|^2 / |teacher|^2`, each summed over a whole batch of feature maps."""
    terms = []
    for name, own in student.items():
        other = teacher[name].to(own.device).float()
        terms.append((own.float() - other).square().sum() / other.square().sum().clamp(min=1e-12))
    return torch.stack(terms).mean()
