"""Several processes: joining them, shares of their work, sharded weights (FSDP2), and decisions of the first process."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from os import PathLike
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate
from transformers import PreTrainedModel

from ..utils.environment import accelerator
from .families import family_of

T = TypeVar("T")
K = TypeVar("K")

# How long processes wait for one another. The launcher ends them all when one has failed, so this only must be long enough for
# what the first does alone, such as saving a large model.
_PATIENCE = timedelta(days=1)
# Set while a process works on something without the others.
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def works_together() -> bool:
    """Whether several processes do the same now, each on its part of the data, so that their sums belong together."""
    return _joined() and not _alone.get()


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def join_processes() -> None:
    """Joins the processes that `accelerate launch` or `torchrun` started; does nothing in a single process.

    Raises:
        ValueError: `WORLD_SIZE` is set without the other variables of a launcher, so the processes cannot find each other.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit() or int(size) < 2 or _joined():
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"`WORLD_SIZE` is {size}, but `{missing[0]}` is not set, so this process cannot find the others. Start all of them "
            "with `accelerate launch` or `torchrun`, or unset `WORLD_SIZE`."
        )
    PartialState(cpu=accelerator() is None, timeout=_PATIENCE)


def is_first_process() -> bool:
    """Whether this is the process that saves and prints; a single one is."""
    return not _joined() or torch.distributed.get_rank() == 0


@contextmanager
def by_itself() -> Iterator[None]:
    """While open, this process does the whole of everything by itself: nothing is shared or summed."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's share of what all processes have alike: every n-th, so that the shares are of like size."""
    if not works_together():
        return items
    return items[torch.distributed.get_rank() :: torch.distributed.get_world_size()]


def gathered(own: Mapping[K, T]) -> dict[K, T]:
    """What each process has found, {name: value}, in one dict that all of them get."""
    if not works_together():
        return dict(own)
    found: list[dict[K, T]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, dict(own))
    return {name: value for part in found for name, value in part.items()}


def agreed(number: int) -> int:
    """The smallest of the processes' numbers, where all must take the same."""
    return min(gathered({torch.distributed.get_rank(): number}).values()) if works_together() else number


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 holds the model's weights: every process has a part of each, whose shape still says the whole one."""
    return isinstance(model, FSDPModule)


def shards_weights(model: PreTrainedModel) -> bool:
    """Whether a Trainer's model is sharded or will be when training begins, as `AcceleratorState` says.

    Raises:
        ValueError: weights are split in a way that cannot be masked and gathered: stage 3 of DeepSpeed, FSDP1, tensor
            parallelism and the like, or FSDP2 for a family whose units are traced.
    """
    state = AcceleratorState()
    kind = state.distributed_type
    remedy = "Train data-parallel or with FSDP2, or prune with `SpectralPruner` before training."
    if kind == DistributedType.FSDP and not state.is_fsdp2:
        raise ValueError(
            "Pruning while training takes FSDP in its version 2, and this is version 1, which flattens the weights. Set "
            '`"version": 2` in `fsdp_config` (`fsdp_version: 2` in the file of `accelerate config`).'
        )
    if kind == DistributedType.DEEPSPEED and state.deepspeed_plugin.zero_stage > 2:
        raise ValueError(f"Pruning while training cannot mask weights that stage 3 of DeepSpeed shards. Use stage 2. {remedy}")
    known = (DistributedType.NO, DistributedType.FSDP, DistributedType.DEEPSPEED)
    if kind not in known and not kind.value.startswith("MULTI_"):
        raise ValueError(f"Pruning while training does not know how {kind.value} spreads the weights. {remedy}")
    if _split_inside_layers(model):
        raise ValueError(f"Pruning while training cannot mask units that tensor parallelism splits over processes. {remedy}")
    sharded = kind == DistributedType.FSDP or is_sharded(model)
    if sharded and family_of(model.config).traced:
        raise ValueError(
            f"The channels of the {family_of(model.config).name} family cannot be traced in sharded weights. Train data-parallel."
        )
    return sharded


def _split_inside_layers(model: nn.Module) -> bool:
    """Whether more than FSDP, which splits a weight along one dimension of the processes, has split it."""
    allowed = int(is_sharded(model))
    return any(
        sum(not placement.is_replicate() for placement in parameter.placements) > allowed
        for parameter in model.parameters()
        if isinstance(parameter, DTensor)
    )


def whole_copy(model: PreTrainedModel) -> PreTrainedModel | None:
    """A plain copy of the model on the first process, and None on the others. All of them must call it.

    The copy of a sharded model is on the CPU of the first process, which needs room for the whole model; it has the class and
    config that were sharded. Another model is copied where it is.
    """
    first = PartialState().is_main_process
    if not is_sharded(model):
        return copy.deepcopy(model) if first else None
    # Gathered one weight at a time; the other processes let go of it at once.
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not first:
        return None
    plain_class: Any = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    config = copy.deepcopy(model.config)
    vars(config).pop("distributed_config", None)  # of a model that transformers sharded as it was loaded
    with init_empty_weights(include_buffers=False):
        plain: PreTrainedModel = plain_class(config)
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    if model.can_generate():
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.train(model.training)


def of_first_process(make: Callable[[], T]) -> T:
    """What `make` gives on the first process, the only one that calls it, on all of them. It must not wait for the others.

    A single process, or one that works by itself, calls it.

    Raises:
        RuntimeError: on the other processes, where `make` raised something on the first: none waits for one that has stopped.
    """
    if not works_together():
        return make()
    value, failure = None, None
    if PartialState().is_main_process:
        try:
            with by_itself():
                value = make()
        except Exception as error:
            failure = error
    value, message = broadcast_object_list([value, None if failure is None else str(failure)])
    if failure is not None:
        raise failure
    if message is not None:
        raise RuntimeError(f"The first process stopped: {message}")
    return value  # type: ignore[return-value]


@torch.no_grad()
def zero_columns(weight: Tensor, columns: Tensor) -> None:
    """Sets columns of a weight (out, in), whole or sharded, to zero in place.

    Args:
        columns: (in,) bool, the same on every process.
    """
    columns = columns.to(weight.device)
    if isinstance(weight, DTensor):
        columns = DTensor.from_local(columns, weight.device_mesh, [Replicate()] * weight.device_mesh.ndim, run_check=False)
    weight.masked_fill_(columns, 0)


def saves_instead(model: PreTrainedModel, saved: PreTrainedModel | None) -> None:
    """Lets `model.save_pretrained` write another model: `saved`, on the process that has it. Undone by `saves_itself`.

    A Trainer calls it on the first process for `save_model`, after it has gathered sharded weights on all.
    """

    def save_pretrained(
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if saved is not None and is_main_process:
            saved.save_pretrained(save_directory, **kwargs)

    vars(model)["save_pretrained"] = save_pretrained


def saves_itself(model: PreTrainedModel) -> None:
    """Undoes `saves_instead`."""
    vars(model).pop("save_pretrained", None)


def all_reduce(tensors: Iterable[Tensor]) -> None:
    """Sums tensors over all processes of a distributed run, in place; does nothing in a single process."""
    if works_together():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
