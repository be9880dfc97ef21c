"""Narrows single layers of a network, so that a model pruned by channels is rebuilt from the widths in its config.

Convolutions, linear layers (also GPT-2's, whose weights are transposed), batch, group and instance norms and PReLU. This file
is shipped beside the weights of such a model, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

# {path of a layer: {"in": inputs, "out": outputs}}, for every layer that is narrower than its class makes it.
Widths = Mapping[str, Mapping[str, int]]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
VECTORS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.PReLU)
MATRICES = (*CONVOLUTIONS, nn.Linear, Conv1D)


def widths_of(layer: nn.Module) -> dict[str, int]:
    """{"in": ..., "out": ...} of a layer as it is; a norm has outputs only."""
    if isinstance(layer, nn.Linear):
        return {"in": layer.in_features, "out": layer.out_features}
    if isinstance(layer, Conv1D):
        return {"in": layer.nx, "out": layer.nf}
    if isinstance(layer, CONVOLUTIONS):
        return {"in": layer.in_channels, "out": layer.out_channels}
    if isinstance(layer, nn.GroupNorm):
        return {"out": layer.num_channels}
    if isinstance(layer, nn.PReLU):
        return {"out": layer.num_parameters}
    if isinstance(layer, (*BATCH_NORMS, *INSTANCE_NORMS)):
        return {"out": layer.num_features}
    raise ValueError(f"A {type(layer).__name__} has no channels that can be cut.")


def weight_of(layer: Any) -> Tensor:
    """(outputs, inputs, ...) weight of a layer; a view of the parameter itself, transposed for a `Conv1D` of GPT-2."""
    weight: Tensor = layer.weight
    return weight.T if isinstance(layer, Conv1D) else weight


def narrow(layer: nn.Module, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keeps the given outputs and inputs (ascending indices) of a layer, in place.

    A norm or PReLU has outputs only. A grouped convolution loses whole groups: `outputs` then says which, and the inputs of a
    group go with it.

    Raises:
        ValueError: nothing would be left, or groups would be torn apart.
    """
    before = widths_of(layer)
    for side, kept in (("out", outputs), ("in", inputs)):
        if kept is not None and len(kept) == 0:
            raise ValueError(f"The cut would leave a {type(layer).__name__} without any channel ({side}put side). Keep some.")
    if isinstance(layer, (*CONVOLUTIONS, nn.GroupNorm)) and outputs is not None:
        _cut_groups(layer, before["out"], outputs)
    transposed = isinstance(layer, Conv1D)
    if outputs is not None:
        _keep(layer, "weight", outputs, int(transposed))
        _keep(layer, "bias", outputs, 0)
        for name in ("running_mean", "running_var"):
            _keep(layer, name, outputs, 0)
        _write(layer, ("out_features", "nf", "out_channels", "num_features", "num_channels", "num_parameters"), len(outputs))
    if inputs is not None and not (isinstance(layer, CONVOLUTIONS) and layer.groups > 1):
        _keep(layer, "weight", inputs, int(not transposed))
        _write(layer, ("in_features", "nx", "in_channels"), len(inputs))


def _cut_groups(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.GroupNorm, before: int, outputs: Tensor) -> None:
    """Sets the number of groups (and the inputs that go with them) of a grouped convolution or norm."""
    name = "num_groups" if isinstance(layer, nn.GroupNorm) else "groups"
    groups = getattr(layer, name)
    if groups == 1 and name == "groups":
        return
    size = before // groups
    whole, counts = torch.unique(outputs // size, return_counts=True)
    if not bool((counts == size).all()):
        raise ValueError(
            f"The cut leaves {len(outputs)} of {before} channels to a {type(layer).__name__} with {groups} groups of {size}, "
            "which tears groups apart. Remove whole groups."
        )
    setattr(layer, name, len(whole))
    if name == "groups":
        layer.in_channels = layer.in_channels // groups * len(whole)


def _keep(layer: nn.Module, name: str, index: Tensor, dim: int) -> None:
    value = getattr(layer, name, None)
    if value is None:
        return
    kept = value.detach().index_select(dim, index.to(value.device))
    setattr(layer, name, nn.Parameter(kept, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else kept)


def _write(layer: nn.Module, names: tuple[str, ...], value: int) -> None:
    for name in names:
        if name in layer.__dict__:
            setattr(layer, name, value)


def narrow_to(model: nn.Module, widths: Widths | None) -> None:
    """Narrows the layers of a freshly built model to the widths of its config; which channels stay does not matter.

    Paths are those inside the base model, then those of the whole model; layers of a head that is not there are skipped.
    """
    base = getattr(model, "base_model", model)
    for path, sides in (widths or {}).items():
        layer = _find(base, path) or _find(model, path)
        if layer is None:
            continue
        now = widths_of(layer)
        kept = {side: torch.arange(count, device="cpu") for side, count in sides.items() if count < now.get(side, count)}
        narrow(layer, kept.get("out"), kept.get("in"))


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


class CriaChannelsMixin:
    """Builds the stock transformers model, then narrows its layers to `config.cria_channels`."""

    def __init__(self, config: PreTrainedConfig, *args: object, **kwargs: object) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        narrow_to(self, config.cria_channels)  # type: ignore[arg-type]


class CriaNetwork(PyTorchModelHubMixin):
    """Mark of the classes that `cria_class` makes."""


def cria_class(network: type) -> Any:
    """The class of a pruned network: `network` with `from_pretrained` and `save_pretrained`, whose config has the widths.

    Args:
        network: the class of the network before pruning. Its arguments come from the config.

    Example:
        ```python
        model = cria_class(ResNet20).from_pretrained("folder")
        ```
    """
    if issubclass(network, CriaNetwork):
        return network

    def __init__(
        self: nn.Module,
        *args: object,
        cria_channels: Widths | None = None,
        cria_network: str | None = None,
        **kwargs: object,
    ) -> None:
        network.__init__(self, *args, **kwargs)
        narrow_to(self, cria_channels)

    given = list(inspect.signature(network.__init__).parameters.values())
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in ("cria_channels", "cria_network")]
    at = len(given) - any(value.kind is inspect.Parameter.VAR_KEYWORD for value in given)
    __init__.__signature__ = inspect.Signature([*given[:at], *extra, *given[at:]])  # type: ignore[attr-defined]
    bases = (network, CriaNetwork)
    members = {"__init__": __init__, "__module__": network.__module__, "__doc__": network.__doc__}
    return type(f"Cria{network.__name__}", bases, members)
