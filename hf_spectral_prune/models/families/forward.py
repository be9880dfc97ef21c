"""Runs a network once: its output tensors, or where and why it fails."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...utils.words import first_line


def run(network: nn.Module, example: Tensor) -> list[Tensor]:
    """Output tensors of a network.

    Raises:
        ValueError: the forward pass fails; names the innermost module and the cause.
    """
    running: list[str] = []

    def left(_module: nn.Module, _args: object, _output: object) -> None:
        running.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _module, _args, name=name: running.append(name)))
        handles.append(module.register_forward_hook(left))
    try:
        output = network(example)
    except Exception as error:  # whatever the network's own code raises
        where = f"in `{running[-1]}`" if running and running[-1] else "in its forward"
        cause = first_line(error)
        raise ValueError(
            f"`{type(network).__name__}` fails on an input of shape {tuple(example.shape)} {where}: {cause}. "
            "Give inputs that it takes."
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    return tensors_in(output)


def tensors_in(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    values = output if isinstance(output, (list, tuple)) else []
    return [tensor for value in values for tensor in tensors_in(value)]


def last_differentiable(network: nn.Module, example: Tensor) -> str:
    """ " after `MODULE`" for the last module whose output still depends on weights; "" where none does."""
    last: list[str] = []

    def note(name: str, output: object) -> None:
        if any(value.requires_grad for value in tensors_in(output)):
            last.append(name)

    modules = [(name, module) for name, module in network.named_modules() if name]
    handles = [
        module.register_forward_hook(lambda _module, _args, output, name=name: note(name, output)) for name, module in modules
    ]
    try:
        network(example)
    finally:
        for handle in handles:
            handle.remove()
    return f" after `{last[-1]}`" if last else ""
