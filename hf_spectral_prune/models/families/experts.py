"""Mixtures of experts: their FFN neurons are cut inside every expert, whose weights become linear layers of their own for it.

transformers keeps the weights of a layer's experts in one tensor. `split_experts` makes linear layers of it, which are scored,
masked and cut like any others, each expert for itself; `join_experts` makes that tensor again. All experts of a model keep one
number of neurons, as its config has one width for them. The router is left as it is, and so are whole experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .base import Family, Producer, Signal, UnitKind
from .llama import KV_GROUPS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Weights = dict[str, Tensor]

# What the tensors of all experts are called, and the linear layers of one.
_NAMES = ("gate_up_proj", "down_proj")


class Expert(nn.Module):
    """One expert: a gated FFN that is given the tokens which the router sends to it.

    Attributes:
        tokens: (n,) which of all tokens of the batch, counted over its rows, it was given last, ascending.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, activation: Callable[[Tensor], Tensor], trained: bool) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = _linear(gate_up, trained), _linear(down, trained)
        self.act_fn = activation
        self.tokens = torch.arange(0)

    def forward(self, states: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """What the expert adds to its tokens, (n, hidden size), times how much the router wants of it, `weights` (n, 1)."""
        self.tokens = tokens
        gate, up = self.gate_up_proj(states).chunk(2, dim=-1)
        hidden = self.act_fn(gate) * up
        # Before the last layer and not behind it, which is the same: what is read there is then weighed as the model weighs it.
        added: Tensor = self.down_proj((hidden * weights).to(hidden.dtype))
        return added


class SingleExperts(nn.ModuleList):
    """The experts of a layer as modules of their own, in the place of the module that has the weights of all in one tensor.

    Its `state_dict` has the names of that module, so that a model is saved as ever; to load takes them too.
    """

    def __init__(self, fused: Any) -> None:
        tensors, trained = [getattr(fused, name).data for name in _NAMES], fused.down_proj.requires_grad
        super().__init__(Expert(gate_up, down, fused.act_fn, trained) for gate_up, down in zip(*tensors, strict=True))
        for name in _NAMES:
            delattr(fused, name)
        self._fused = (fused,)  # in a tuple, so that it is no part of the model

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
        fused.intermediate_dim = fused.down_proj.shape[-1]
        return fused

    def _tensors(self) -> dict[str, Tensor]:
        return {name: _stacked([getattr(expert, name).weight for expert in self]) for name in _NAMES}

    def state_dict(self, *args: Any, destination: Weights | None = None, prefix: str = "", keep_vars: bool = False) -> Weights:  # type: ignore[override]
        destination = {} if destination is None else destination
        for name, value in self._tensors().items():
            destination[prefix + name] = value if keep_vars else value.detach()
        return destination

    def _load_from_state_dict(self, state_dict: Weights, prefix: str, *args: Any) -> None:
        for name in _NAMES:
            if prefix + name in state_dict:
                for number, value in enumerate(state_dict.pop(prefix + name)):
                    state_dict[f"{prefix}{number}.{name}.weight"] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """(experts, out, in); of weights that are still parts of one tensor, that tensor, without a copy."""
    first = weights[0]
    size = first.numel() * first.element_size()
    places = [weight.data_ptr() - first.data_ptr() for weight in weights]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if len(storages) == 1 and places == [number * size for number in range(len(weights))]:
        return first.detach().as_strided((len(weights), *first.shape), (first.numel(), *first.stride()))
    return torch.stack(list(weights))


def _linear(weight: Tensor, trained: bool) -> nn.Linear:
    """A linear layer with this weight (out, in), which is not copied."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=trained)
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
    if set(held) != set(_NAMES) or not all(value.dim() == 3 and value.is_floating_point() for value in held.values()):
        raise ValueError(
            f"`{path}` is a {type(experts).__name__} with {', '.join(f'`{name}`' for name in held) or 'no weights'} and not with "
            "two tensors for all experts, so it cannot be cut. Load the model without quantisation or adapters (dequantise or "
            "merge first)."
        )
    if any(value.is_meta for value in held.values()):
        raise ValueError(
            f"The weights of `{path}` are not in memory: the model is offloaded or empty. Load it whole on one device (leave "
            "`device_map` out, or give it one device)."
        )


def _experts_ffn(size_field: str) -> UnitKind:
    """The FFN of every expert, whose `gate_up_proj` holds the half that goes through the activation first."""
    return UnitKind(
        kind="ffn",
        before=Signal("gate_up_proj", "output", block=0, num_blocks=2),
        after=Signal("down_proj", "input"),
        producers=(Producer("gate_up_proj", num_blocks=2),),
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

FAMILIES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE)
