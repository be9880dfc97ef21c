"""Counts the parameters and MACs of a shape before it exists; exact where a layer loses both its outputs and its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from ..models.cria.channels import CONVOLUTIONS, MATRICES, widths_of
from ..models.families import UnitGroup, network_of, parts
from .allocate import Sizes


@dataclass
class LayerShape:
    """How a layer's cost depends on the sizes of the groups that touch it.

    Attributes:
        outputs, inputs: its widths now.
        kernel: weights for one output and one input; for a grouped convolution those of one output, whose inputs go along.
        vector: further parameters of one output: its bias, or a norm's.
        positions: how often each weight is used on one input of the model; MACs are this times the weights.
        of_outputs, of_inputs: {group key: entries of this side that leave with one unit}.
    """

    outputs: int
    inputs: int
    kernel: int
    vector: int
    positions: int = 0
    of_outputs: dict[str, int] = field(default_factory=dict)
    of_inputs: dict[str, int] = field(default_factory=dict)

    def count(self, removed: Mapping[str, int]) -> tuple[int, int]:
        """(parameters, MACs) once `removed` {group key: units} are gone."""
        outputs = self.outputs - sum(removed[key] * entries for key, entries in self.of_outputs.items())
        inputs = self.inputs - sum(removed[key] * entries for key, entries in self.of_inputs.items())
        weights = self.kernel * outputs * inputs
        return weights + self.vector * outputs, self.positions * weights


@dataclass(frozen=True)
class Budget:
    """Parameters and MACs of a model by the sizes of its groups.

    Attributes:
        groups: the groups as the model has them now.
        layers: the layers that change with them.
        other_parameters, other_macs: of everything else.
    """

    groups: tuple[UnitGroup, ...]
    layers: tuple[LayerShape, ...]
    other_parameters: int
    other_macs: int

    def _count(self, sizes: Sizes) -> tuple[int, int]:
        removed = {group.key: group.size - sizes[group.key] for group in self.groups}
        counts = [layer.count(removed) for layer in self.layers]
        return self.other_parameters + sum(one for one, _ in counts), self.other_macs + sum(two for _, two in counts)

    def parameters(self, sizes: Sizes) -> int:
        """Exact parameter count of the model once every group has its size in `sizes`."""
        return self._count(sizes)[0]

    def macs(self, sizes: Sizes) -> int:
        """Exact MACs of one input, as `flops.layer_macs` counts them."""
        return self._count(sizes)[1]


def budget_of(model: PreTrainedModel, groups: Sequence[UnitGroup], macs: Mapping[str, int] | None = None) -> Budget:
    """The budget of a model as it stands.

    Args:
        macs: {path: MACs} of the model by layer; without it `Budget.macs` counts none.
    """
    paths = {module: name for name, module in network_of(model).named_modules()}
    shapes: dict[nn.Module, LayerShape] = {}
    for group in groups:
        for part in parts(model, group):
            shape = shapes.setdefault(part.module, _shape(part.module, (macs or {}).get(paths[part.module], 0)))
            side = shape.of_inputs if part.is_input else shape.of_outputs
            side[group.key] = side.get(group.key, 0) + part.slice.index.shape[1]
    counts = [shape.count(dict.fromkeys((group.key for group in groups), 0)) for shape in shapes.values()]
    every = sum(parameter.numel() for parameter in model.parameters())
    return Budget(
        groups=tuple(groups),
        layers=tuple(shapes.values()),
        other_parameters=every - sum(one for one, _ in counts),
        other_macs=sum((macs or {}).values()) - sum(two for _, two in counts),
    )


def _shape(module: nn.Module, macs: int) -> LayerShape:
    widths = widths_of(module)
    own = {name: value for name, value in module.named_parameters(recurse=False) if name in ("weight", "bias")}
    if not isinstance(module, MATRICES):
        return LayerShape(widths["out"], 1, 0, len(own))
    weights = own["weight"].numel()
    grouped = isinstance(module, CONVOLUTIONS) and module.groups > 1
    inputs = 1 if grouped else widths["in"]
    positions = macs // weights
    return LayerShape(widths["out"], inputs, weights // (widths["out"] * inputs), len(own) - 1, positions)


def macs_per_unit(model: PreTrainedModel, group: UnitGroup, macs: Mapping[str, int], attention: str | None = None) -> int:
    """MACs that leave with one unit while all other groups keep their sizes.

    Args:
        attention: path in `macs` of the attention that a group of heads belongs to.
    """
    paths = {module: name for name, module in network_of(model).named_modules()}
    total = macs.get(attention, 0) // group.size if attention is not None else 0
    for part in parts(model, group):
        width = widths_of(part.module)["in" if part.is_input else "out"]
        total += macs.get(paths[part.module], 0) * part.slice.index.shape[1] // width
    return total
