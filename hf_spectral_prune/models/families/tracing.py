"""Finds the channel groups of a network by tracing it, and keeps those whose removal does what masking does.

torch-pruning's dependency graph (DepGraph, arXiv:2301.12900) says which modules share channels: residual sums, depthwise
convolutions, concatenations, flattening. It takes operations that it does not know for element-wise ones, so every group is
tried on a copy of the network before it is offered; one that fails stays whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ...utils.words import install_words
from ..cria.channels import CONVOLUTIONS, MATRICES, VECTORS, narrow, widths_of
from .base import Slice, UnitGroup, network_of
from .forward import last_differentiable, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.get_logger(__name__)

# Spatial size to trace with where the config has none; adaptive pooling makes it meaningless for the graph.
_TRACE_SIZE = 64
# Operations that leave channels where they are, by the names of their autograd nodes; others are named when a group fails.
_HARMLESS = (
    *("add", "sub", "mul", "div", "mean", "sum", "clone", "copy", "alias", "t", "dropout", "upsample", "batchnorm"),
    *("relu", "hardtanh", "sigmoid", "silu", "gelu", "tanh", "elu", "leakyrelu", "softmax", "hardswish", "hardsigmoid"),
    *("view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "cat", "adaptive", "avgpool", "maxpool"),
)
_ROOTS = (*MATRICES, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # layers that make channels
_MEMO = "_cria_channel_groups"


def example_input(model: PreTrainedModel) -> Tensor:
    """One random input of the model, (1, C, H, W) or whatever shape a plain network takes; the same at every call."""
    config = model.config
    if config.model_type == "torch":
        shape = tuple(config.input_shape)
    else:
        size = getattr(config, "image_size", None) or _TRACE_SIZE
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (config.num_channels, height, width)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def traced_groups(model: PreTrainedModel) -> list[UnitGroup]:
    """The groups of channels that can be removed, from the input to the output.

    Channels that reach the network's output are never among them. Channels that a group or layer norm sees together make one
    unit, so that removing them leaves the others' statistics as they are.

    Raises:
        ValueError: torch-pruning is missing; the network cannot be traced, or none of its groups can be cut (names the
            module or operation).
    """
    network = network_of(model)
    signature = tuple((name, tuple(value.shape)) for name, value in network.named_parameters())
    known = model.__dict__.get(_MEMO)
    if known is not None and known[0] == signature:
        return list(known[1])
    _check_plain_weights(network)
    # A copy, because tracing needs gradients and float32, and trying a cut destroys what it is tried on.
    with torch.inference_mode(False), torch.enable_grad():
        traced = copy.deepcopy(network).to("cpu", torch.float32).eval().requires_grad_(True)
        example = example_input(model)
        candidates, faults = _candidates(traced, example)
        candidates = _verified(traced, example, candidates, faults)
    if not candidates:
        reason = faults[0] if faults else "it has no hidden channels"
        raise ValueError(f"No channels of `{type(network).__name__}` can be removed: {reason}.")
    if faults:
        logger.info(f"{len(faults)} groups of channels stay whole. {'; '.join(faults)}.")
    groups = [_group(traced, index, candidate) for index, candidate in enumerate(candidates)]
    model.__dict__[_MEMO] = (signature, tuple(groups))
    return groups


@dataclass(frozen=True)
class _Candidate:
    """A group as traced: channels are numbered as the rows of its first module."""

    name: str
    slices: tuple[Slice, ...]
    before: tuple[Slice, ...]
    channels_per_unit: int
    operations: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.slices[0].index)


# ---- from the dependency graph to candidates


def _candidates(network: nn.Module, example: Tensor) -> tuple[list[_Candidate], list[str]]:
    graph = _dependency_graph(network, example)
    paths = {module: name for name, module in network.named_modules()}
    order = {name: index for index, name in enumerate(paths.values())}
    found: list[_Candidate] = []
    faults: list[str] = []
    for group in _groups(graph, paths, faults):
        items = [(item.dep, list(item.idxs), list(item.root_idxs)) for item in group]
        try:
            candidate = _candidate(items, paths, order, graph)
        except ValueError as error:
            faults.append(str(error))
            continue
        if candidate is not None:
            found.append(candidate)
    return sorted(found, key=lambda candidate: order[candidate.name]), faults


def _groups(graph: Any, paths: Mapping[nn.Module, str], faults: list[str]) -> Iterator[Any]:
    """What `get_all_groups` of torch-pruning yields, but a layer whose channels it cannot follow does not end the others."""
    ignored = set(graph.IGNORED_LAYERS_IN_TRACING)
    seen = set(ignored)
    for layer in [module for module in graph.module2node if isinstance(module, _ROOTS)]:
        pruner = graph.get_pruner_of_module(layer)
        if layer in seen or pruner is None or pruner.get_out_channels(layer) is None:
            continue
        try:
            group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(pruner.get_out_channels(layer))))
        except Exception as error:  # behind an operation that it does not know, its indices may lie anywhere
            faults.append(f"the channels of `{paths[layer]}` cannot be followed through the network ({type(error).__name__})")
            continue
        makers = {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        seen |= makers
        if not makers & ignored:
            yield group


def _check_plain_weights(network: nn.Module) -> None:
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                raise ValueError(
                    f"`{name}.{key}` is computed from other tensors at every pass, as `torch.nn.utils` leaves it (`weight_norm`, "
                    "`spectral_norm`, `prune`), so it cannot be cut. Make it plain first: `torch.nn.utils.remove_weight_norm"
                    "(module)`, `remove_spectral_norm(module)` or `prune.remove(module, name)`."
                )


def _dependency_graph(network: nn.Module, example: Tensor) -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise ValueError(
            f"Finding channels needs the package `torch-pruning`. To install it, {install_words('vision')}."
        ) from None

    def outputs(_network: nn.Module, _example: Tensor) -> list[Tensor]:
        found = run(network, example)
        if not found or not all(value.requires_grad for value in found):
            raise ValueError(
                f"`{type(network).__name__}` cannot be traced: its output does not depend on its weights by differentiable "
                f"operations{last_differentiable(network, example)}. Remove `detach`, `no_grad`, rounding and the like."
            )
        return found

    return torch_pruning.DependencyGraph().build_dependency(network, example, forward_fn=outputs, verbose=False)


def _candidate(
    items: Sequence[tuple[Any, list[int], list[int]]], paths: Mapping[nn.Module, str], order: Mapping[str, int], graph: Any
) -> _Candidate | None:
    """One group as slices; None where its channels are the network's output.

    Raises:
        ValueError: the group has a module that cannot be cut.
    """
    if any(type(dep.target.module).__name__ == "_OutputOp" for dep, _, _ in items):
        return None
    found: list[tuple[str, nn.Module, str, list[int], list[int]]] = []
    operations = []
    for dep, indices, roots in items:
        module = dep.target.module
        if module not in paths:
            if isinstance(module, nn.Parameter):
                raise ValueError(f"a parameter of shape {tuple(module.shape)} lies in no layer, so it cannot be cut")
            operations.append(str(dep.target.name or module))
            continue
        side = "output" if graph.is_out_channel_pruning_fn(dep.handler) else "input"
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            continue
        found.append((paths[module], module, side, indices, roots))
    makers = [row for row in found if row[2] == "output" and isinstance(row[1], MATRICES)]
    if not makers or not any(row[2] == "input" for row in found):
        return None
    name, _, _, indices, roots = min(makers, key=lambda row: order[row[0]])
    _check_modules(found, name)
    # Channels are numbered as the rows of the first module.
    channel_of = {root: channel for channel, (_, root) in enumerate(sorted(zip(indices, roots, strict=True)))}
    units = _units(found, channel_of, name)
    slices = tuple(_slice(row, channel_of, units) for row in found)
    unit_slices = {piece.path: piece for piece in slices if piece.side == "output"}
    makers = [row for row in makers if getattr(row[1], "groups", 1) == 1]
    before = tuple(unit_slices[_normed(row[1], graph, paths, unit_slices) or row[0]] for row in makers)
    first = next(index for index, row in enumerate(found) if row[0] == name)
    ordered = (slices[first], *slices[:first], *slices[first + 1 :])
    return _Candidate(name, ordered, before, len(units[0]), tuple(operations))


def _check_modules(found: Iterable[tuple[str, nn.Module, str, list[int], list[int]]], name: str) -> None:
    for path, module, side, _, _ in found:
        what = f"`{path}` ({type(module).__name__}) reads or makes the channels of `{name}` and cannot be cut"
        if not isinstance(module, (*MATRICES, *VECTORS)):
            raise ValueError(what)
        grouped = isinstance(module, CONVOLUTIONS) and module.groups > 1
        if grouped and not (side == "output" and module.groups == module.in_channels == module.out_channels):
            raise ValueError(f"{what}: it has {module.groups} groups of channels")


def _units(
    found: Sequence[tuple[str, nn.Module, str, list[int], list[int]]], channel_of: Mapping[int, int], name: str
) -> list[list[int]]:
    """Channels of every unit: one each, or those that a group norm normalises together.

    Raises:
        ValueError: group norms overlap, or normalise channels of several groups together.
    """
    label = list(range(len(channel_of)))
    for path, module, _, indices, roots in found:
        if not isinstance(module, nn.GroupNorm):
            continue
        width = module.num_channels // module.num_groups
        members: dict[int, list[int]] = {}
        for index, root in zip(indices, roots, strict=True):
            members.setdefault(index // width, []).append(channel_of[root])
        for channels in members.values():
            if len(channels) != width:
                raise ValueError(f"the group norm `{path}` normalises channels of `{name}` together with those of another layer")
            joined = {label[channel] for channel in channels}
            label = [min(joined) if value in joined else value for value in label]
    units: dict[int, list[int]] = {}
    for channel, value in enumerate(label):
        units.setdefault(value, []).append(channel)
    if len({len(channels) for channels in units.values()}) > 1:
        raise ValueError(f"the group norms on the channels of `{name}` have groups that do not divide alike")
    if len(units) < 2:
        raise ValueError(f"a norm normalises all channels of `{name}` together")
    return list(units.values())


def _slice(
    row: tuple[str, nn.Module, str, list[int], list[int]], channel_of: Mapping[int, int], units: Sequence[list[int]]
) -> Slice:
    path, module, side, indices, roots = row
    of_channel: list[list[int]] = [[] for _ in channel_of]
    for index, root in zip(indices, roots, strict=True):
        of_channel[channel_of[root]].append(index)
    module_width = widths_of(module)["out" if side == "output" else "in"]
    if max(indices) >= module_width:  # as behind GLU or PixelShuffle, which make fewer channels of many
        raise ValueError(f"the channels that `{path}` takes are not those of the layers before it, one for one")
    if len({len(entries) for entries in of_channel}) != 1:
        raise ValueError(f"`{path}` takes different numbers of entries from the channels of one layer")
    rows = [[index for channel in channels for index in sorted(of_channel[channel])] for channels in units]
    return Slice(path, "output" if side == "output" else "input", torch.tensor(rows))


def _normed(module: nn.Module, graph: Any, paths: Mapping[nn.Module, str], slices: Mapping[str, Slice]) -> str | None:
    """Path of the norm that alone reads what a module makes, if there is one."""
    readers = graph.module2node[module].outputs
    if len(readers) != 1:
        return None
    reader = readers[0].module
    is_norm = isinstance(reader, VECTORS) and not isinstance(reader, nn.PReLU)
    return paths[reader] if is_norm and paths.get(reader) in slices else None


def _group(network: nn.Module, layer: int, candidate: _Candidate) -> UnitGroup:
    return UnitGroup(
        layer=layer,
        kind="channels",
        size=candidate.size,
        channels_per_unit=candidate.channels_per_unit,
        parameters_per_unit=sum(_parameters(network.get_submodule(piece.path), piece) for piece in candidate.slices),
        name=candidate.name,
        slices=candidate.slices,
        before=candidate.before,
    )


def _parameters(module: nn.Module, piece: Slice) -> int:
    """Parameters of one module that leave with one unit."""
    entries = piece.index.shape[1]
    values = [value for name, value in module.named_parameters(recurse=False) if piece.side == "output" or name == "weight"]
    return sum(value.numel() // value.shape[0 if piece.side == "output" else 1] * entries for value in values)


# ---- trying the candidates


def _verified(network: nn.Module, example: Tensor, candidates: list[_Candidate], faults: list[str]) -> list[_Candidate]:
    """The candidates whose removal gives what masking them gives; adds the reasons of the others to `faults`."""
    if not candidates or _fault(network, example, candidates) is None:
        return candidates
    sound = []
    for candidate in candidates:
        fault = _fault(network, example, [candidate])
        if fault is None:
            sound.append(candidate)
        else:
            what = f"the channels of `{candidate.name}` cannot be followed through the network{_suspects(candidate)}"
            faults.append(f"{what}: {fault}")
    # Each is sound by itself; together they must be too.
    while sound and (fault := _fault(network, example, sound)) is not None:
        faults.append(f"the channels of `{sound[-1].name}` cannot be removed together with others: {fault}")
        sound.pop()
    return sound


@torch.no_grad()
def _fault(network: nn.Module, example: Tensor, candidates: Sequence[_Candidate]) -> str | None:
    """What goes wrong when half of the units are removed, or None."""
    generator = torch.Generator().manual_seed(0)
    removed = {}
    for candidate in candidates:
        order = torch.randperm(candidate.size, generator=generator)
        removed[candidate.name] = order[: max(1, candidate.size // 2)]
    masked, cut = copy.deepcopy(network), copy.deepcopy(network)
    for candidate in candidates:
        for piece in candidate.slices:
            if piece.side == "input":
                masked.get_submodule(piece.path).weight[:, piece.index[removed[candidate.name]].flatten()] = 0  # type: ignore[index, operator]
    try:
        for path, (outputs, inputs) in kept_entries(network, [(c.slices, removed[c.name]) for c in candidates]).items():
            narrow(cut.get_submodule(path), outputs, inputs)
        expected, found = run(masked, example), run(cut, example)
    except (ValueError, RuntimeError, IndexError) as error:
        return str(error)
    for one, two in zip(expected, found, strict=True):
        if one.shape != two.shape:
            return f"the output would change its shape from {tuple(one.shape)} to {tuple(two.shape)}"
        if not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(one.abs().max()) + 1e-6):
            return "the output would differ from that of the network with these channels masked"
    return None


def kept_entries(
    network: nn.Module, removed: Iterable[tuple[Sequence[Slice], Tensor]]
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """{path: (outputs, inputs)} that stay of every module once units of several groups are removed; None for all.

    Args:
        removed: slices of a group, and the units of it that go.
    """
    gone: dict[tuple[str, str], list[Tensor]] = {}
    for slices, units in removed:
        for piece in slices:
            gone.setdefault((piece.path, piece.side), []).append(piece.index[units].flatten())
    kept: dict[str, dict[str, Tensor]] = {}
    for (path, side), indices in gone.items():
        stays = torch.ones(widths_of(network.get_submodule(path))["in" if side == "input" else "out"], dtype=torch.bool)
        stays[torch.cat(indices)] = False
        if not bool(stays.all()):
            kept.setdefault(path, {})[side] = stays.nonzero().flatten()
    return {path: (sides.get("output"), sides.get("input")) for path, sides in kept.items()}


def _suspects(candidate: _Candidate) -> str:
    """Names of the operations in the group that may move channels."""
    names = dict.fromkeys(name.rpartition("(")[2].rstrip(")") for name in candidate.operations if "Backward" in name)
    unknown = [name for name in names if not name.lower().startswith(_HARMLESS)]
    return f" (operation{'s' if len(unknown) > 1 else ''} {', '.join(unknown[:3])})" if unknown else ""
