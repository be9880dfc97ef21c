"""Mixtures of experts: their FFN neurons are cut inside every expert, whose weights become linear layers of their own for it.

transformers keeps the weights of a layer's experts in one tensor. `split_experts` makes linear layers of it, which are scored,
masked and cut like any others, each expert for itself; `join_experts` makes that tensor again. All experts of a model keep one
number of neurons, as its config has one width for them. The router is left as it is, and so are whole experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .base import Family, Producer, Signal, UnitKind
from .llama import KV_GROUPS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Weights = dict[str, Tensor]

# {name of a tensor of all experts: what an expert calls its parts of it}. The last two are not everywhere.
_PARTS = {
    "gate_up_proj": ("gate_proj.weight", "up_proj.weight"),
    "down_proj": ("down_proj.weight",),
    "gate_up_proj_bias": ("gate_proj.bias", "up_proj.bias"),
    "down_proj_bias": ("down_bias",),
}
_BIASES = ("gate_up_proj_bias", "down_proj_bias")


@dataclass(frozen=True)
class _Layout:
    """How a module of transformers keeps the weights of its experts.

    Attributes:
        transposed: its matrices are (experts, in, out).
        interleaved: the two channels that make a neuron lie side by side, and not in two halves.
    """

    transposed: bool
    interleaved: bool

    def apart(self, fused: Weights) -> Weights:
        """The parts of all experts, (experts, out, in) or (experts, out), without a copy."""
        found: Weights = {}
        for name, value in fused.items():
            value = value.mT if self.transposed and name not in _BIASES else value
            pair = (value[:, ::2], value[:, 1::2]) if self.interleaved else value.chunk(2, dim=1)
            found |= dict(zip(_PARTS[name], pair if len(_PARTS[name]) == 2 else (value,), strict=True))
        return found

    def together(self, parts: Weights) -> Weights:
        """Undoes `apart`."""
        found = {}
        for name, own in _PARTS.items():
            if own[0] in parts:
                value = self.pair(*(parts[part] for part in own)) if len(own) == 2 else parts[own[0]]
                found[name] = (value.mT if self.transposed and name not in _BIASES else value).contiguous()
        return found

    def pair(self, gate: Tensor, up: Tensor) -> Tensor:
        """(n, 2 * neurons, ...) what makes the neurons, from both of its halves."""
        return torch.stack([gate, up], dim=2).flatten(1, 2) if self.interleaved else torch.cat([gate, up], dim=1)


class Expert(nn.Module):
    """One expert: a gated FFN that is given the tokens which the router sends to it.

    Attributes:
        tokens: (n,) which of all tokens of the batch, counted over its rows, it was given last, ascending.
    """

    def __init__(self, weights: Weights, fused: Any, layout: _Layout, trained: bool) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            _linear(weights[f"{name}.weight"], weights.get(f"{name}.bias"), trained)
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        bias = weights.get("down_bias")
        self.down_bias = None if bias is None else nn.Parameter(bias, requires_grad=trained)
        self.tokens = torch.arange(0)
        self._fused, self._layout = (fused,), layout  # in a tuple, so that it is no part of the model

    def forward(self, states: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """What the expert adds to its tokens, (n, hidden size), times how much the router wants of it, `weights` (n, 1)."""
        self.tokens = tokens
        hidden: Tensor = self._fused[0]._apply_gate(self._layout.pair(self.gate_proj(states), self.up_proj(states)))
        # Before the last layer and not behind it, which is the same: what is read there is then weighed as the model weighs it.
        added: Tensor = self.down_proj((hidden * weights).to(hidden.dtype))
        return added if self.down_bias is None else added + (self.down_bias * weights).to(added.dtype)


class SingleExperts(nn.ModuleList):
    """The experts of a layer as modules of their own, in the place of the module that has the weights of all in one tensor.

    Its `state_dict` has the names of that module, so that a model is saved as ever; to load takes them too.
    """

    def __init__(self, fused: Any) -> None:
        tensors = {name: getattr(fused, name).data for name in _PARTS if hasattr(fused, name)}
        layout, trained = _Layout(fused.is_transposed, not fused.is_concatenated), fused.down_proj.requires_grad
        parts = layout.apart(tensors)
        count = len(tensors["down_proj"])
        super().__init__(
            Expert({name: value[number] for name, value in parts.items()}, fused, layout, trained) for number in range(count)
        )
        for name in tensors:
            delattr(fused, name)
        self._fused, self._layout = (fused,), layout

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The sum over a token's experts: states (N, hidden size), the experts of each token (N, k) and their weights (N, k)."""
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            tokens, place = torch.where(top_k_index == number)
            added = expert(hidden_states[tokens], tokens, top_k_weights[tokens, place, None])
            total.index_add_(0, tokens, added.to(total.dtype))
        return total

    def joined(self) -> nn.Module:
        """The module of transformers again, with the weights as they are now."""
        (fused,) = self._fused
        trained = next(self.parameters()).requires_grad
        for name, value in self._tensors().items():
            setattr(fused, name, nn.Parameter(value.detach(), requires_grad=trained))
        width = "intermediate_dim" if hasattr(fused, "intermediate_dim") else "intermediate_size"
        setattr(fused, width, self[0].get_parameter("down_proj.weight").shape[1])
        return fused

    def _tensors(self) -> Weights:
        """The tensors of all experts; those that were taken apart, without a copy, if nothing has changed."""
        parts = {name: [expert.get_parameter(name) for expert in self] for name, _ in self[0].named_parameters()}
        whole = self._whole(parts)
        return whole or self._layout.together({name: torch.stack([*values]) for name, values in parts.items()})

    def _whole(self, parts: Mapping[str, Sequence[Tensor]]) -> Weights | None:
        """The tensors that the parts are views of; None where they no longer are."""
        shapes = {name: torch.empty(len(self), *values[0].shape, device="meta") for name, values in parts.items()}
        found = {}
        for name, like in self._layout.together(shapes).items():
            first, pieces = parts[_PARTS[name][0]][0], [value for part in _PARTS[name] for value in parts[part]]
            storage = first.untyped_storage()
            room = storage.nbytes() // first.element_size() - first.storage_offset()
            if any(value.untyped_storage().data_ptr() != storage.data_ptr() for value in pieces) or room < like.numel():
                return None
            found[name] = first.detach().as_strided(like.shape, like.stride())
        for name, values in self._layout.apart(found).items():
            if any(_place(value) != _place(part) for value, part in zip(values, parts[name], strict=True)):
                return None
        return found

    def state_dict(self, *args: Any, destination: Weights | None = None, prefix: str = "", keep_vars: bool = False) -> Weights:  # type: ignore[override]
        destination = {} if destination is None else destination
        for name, value in self._tensors().items():
            destination[prefix + name] = value if keep_vars else value.detach()
        return destination

    def _load_from_state_dict(self, state_dict: Weights, prefix: str, *args: Any) -> None:
        fused = {name: state_dict.pop(prefix + name) for name in _PARTS if prefix + name in state_dict}
        for name, values in self._layout.apart(fused).items():
            state_dict |= {f"{prefix}{number}.{name}": value for number, value in enumerate(values)}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _place(value: Tensor) -> tuple[int, tuple[int, ...]]:
    return value.data_ptr(), value.stride()


def _linear(weight: Tensor, bias: Tensor | None, trained: bool) -> nn.Linear:
    """A linear layer with this weight (out, in), which is not copied."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=trained)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=trained)
    return linear


def _experts(model: PreTrainedModel, family: Family) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(module, name inside it, experts) of every layer that has experts."""
    assert family.experts is not None
    path, _, name = family.experts.rpartition(".")
    for layer in model.base_model.get_submodule(family.layers).children():
        owner = dict(layer.named_modules()).get(path)
        if owner is not None and hasattr(owner, name):
            yield owner, name, getattr(owner, name)


def split_experts(model: PreTrainedModel, family: Family) -> None:
    """Makes linear layers of the experts, in place and without a copy of their weights; the function does not change."""
    for owner, name, experts in _experts(model, family):
        if not isinstance(experts, SingleExperts):
            _check_plain(experts, f"{family.experts}")
            setattr(owner, name, SingleExperts(experts))


def join_experts(model: PreTrainedModel, family: Family) -> None:
    """Undoes `split_experts`: the modules are those of transformers again, a layer at a time."""
    if family.experts is None:
        return
    for owner, name, experts in _experts(model, family):
        if isinstance(experts, SingleExperts):
            setattr(owner, name, experts.joined())


def check_no_experts(family: Family, what: str) -> None:
    """Tells of experts where something works on the weights that a Trainer's optimizer holds, which are those of all experts.

    Raises:
        ValueError: the family has experts.
    """
    if family.experts is not None:
        raise ValueError(
            f"{what} does not know the experts of `{family.name}`, whose weights an optimizer holds in one tensor. Prune with "
            "`SpectralPruner`, before training or after it."
        )


def _check_plain(experts: nn.Module, path: str) -> None:
    held = dict(experts.named_parameters())
    matrices = {*_PARTS} - {*_BIASES}
    plain = all(value.dim() == (2 if name in _BIASES else 3) and value.is_floating_point() for name, value in held.items())
    if {*held} not in (matrices, {*_PARTS}) or not plain:
        raise ValueError(
            f"`{path}` is a {type(experts).__name__} with {', '.join(f'`{name}`' for name in held) or 'no weights'} and not with "
            "one tensor a kind for all, so it cannot be cut. Load the model without quantisation or adapters (dequantise or "
            "merge first)."
        )
    if any(value.is_meta for value in held.values()):
        raise ValueError(
            f"The weights of `{path}` are not in memory: the model is offloaded or empty. Load it whole on one device (leave "
            "`device_map` out, or give it one device)."
        )


def _experts_ffn(size_field: str) -> UnitKind:
    """The FFN of every expert."""
    return UnitKind(
        kind="ffn",
        before=Signal("gate_proj", "output"),
        after=Signal("down_proj", "input"),
        producers=(Producer("gate_proj"), Producer("up_proj")),
        consumer="down_proj",
        size_field=size_field,
        config_fields=(size_field,),
        stream=None,
        each="mlp.experts",
    )


_SHARED = UnitKind(
    kind="shared_ffn",
    before=Signal("mlp.shared_expert.gate_proj", "output"),
    after=Signal("mlp.shared_expert.down_proj", "input"),
    producers=(Producer("mlp.shared_expert.gate_proj"), Producer("mlp.shared_expert.up_proj")),
    consumer="mlp.shared_expert.down_proj",
    size_field="shared_expert_intermediate_size",
    config_fields=("shared_expert_intermediate_size",),
    module_fields=(("mlp.shared_expert", "intermediate_size"),),
    stream=None,
)

MIXTRAL = Family(
    name="mixtral",
    model_types=("mixtral",),
    layers="layers",
    kinds=(_experts_ffn("intermediate_size"), KV_GROUPS),
)
QWEN2_MOE = Family(
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    layers="layers",
    kinds=(_experts_ffn("moe_intermediate_size"), _SHARED, KV_GROUPS),
    also="Qwen1.5-MoE",
)
QWEN3_MOE = replace(QWEN2_MOE, name="qwen3_moe", model_types=("qwen3_moe",), kinds=(QWEN2_MOE.kinds[0], KV_GROUPS), also="")
# Its norms of queries and keys take all heads together.
OLMOE = replace(MIXTRAL, name="olmoe", model_types=("olmoe",), kinds=MIXTRAL.kinds[:1])
# Each of its query heads has a sink of its own, which is no linear layer's.
GPT_OSS = replace(OLMOE, name="gpt_oss", model_types=("gpt_oss",))

FAMILIES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GPT_OSS)
