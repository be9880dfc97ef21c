"""Layers whose weights lie on the disk, by accelerate's hooks: brought to memory one at a time, and written anew once cut.

A model loaded with a `device_map` that sends its layers to "disk" computes as any other: the hooks read a module's weights for
its forward pass and let go of them. Who reads or changes weights itself opens `resident` or `rewritten` around it. Both do
nothing where the weights are in memory anyway, so that all models go the same way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset, set_module_tensor_to_device
from filelock import SoftFileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ..utils.files import LOCK_PATIENCE
from .families import layers_of

_FOLDER = "_folder_of_cut_layers"


def is_offloaded(model: nn.Module) -> bool:
    """Whether the weights of some layers, and of nothing else, lie on the disk."""
    if not isinstance(model, PreTrainedModel):
        return False
    absent = {parameter for parameter in model.parameters() if parameter.is_meta}
    if not absent or not any(_loader(hook).index for _, _, hook in _hooked(model)):
        return False
    return absent <= {parameter for layer in layers_of(model) for parameter in layer.parameters()}


def layers_on_disk(model: PreTrainedModel, device: torch.device) -> dict[str, str]:
    """A `device_map` for a model of this shape: its layers on the disk, all else on `device`.

    Args:
        model: without weights.
    """
    layers = layers_of(model)
    places: dict[str, str] = {}

    def place(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            if child in layers:
                places[path + name] = "disk"
            elif any(layers[0] is inner for inner in child.modules()):
                place(child, f"{path}{name}.")
            else:
                places[path + name] = str(device)

    place(model, "")
    return places


@contextmanager
def resident(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """While open, the weights of a layer are in memory, to be read. May be opened inside itself."""
    brought = [(module, hook) for _, module, hook in _hooked_of(model, layer) if hook.offload]
    opened: dict[str, Any] = {}
    try:
        for module, hook in brought:
            for name, _ in module.named_parameters(recurse=False):
                set_module_tensor_to_device(module, name, hook.execution_device, value=_read(hook, name, opened))  # type: ignore[arg-type]
            hook.offload = False
        yield
    finally:
        for module, hook in brought:
            hook.offload = True
            for name, _ in module.named_parameters(recurse=False):
                set_module_tensor_to_device(module, name, "meta")


@contextmanager
def rewritten(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """`resident`, for a layer whose weights are changed: they are written to the disk and read from there later on."""
    with resident(model, layer):
        yield
        hooked = _hooked_of(model, layer)
        if not hooked:
            return
        weights = {
            f"{path}{name}": value.detach().contiguous()
            for path, module, _ in hooked
            for name, value in module.named_parameters(recurse=False)
        }
        file = _folder(model, _loader(hooked[0][2])) / f"{layer}.safetensors"
        save_file(weights, f"{file}.new")
        os.replace(f"{file}.new", file)
        index = {name: {"safetensors_file": str(file), "weight_name": name} for name in weights}
        loader = OffloadedWeightsLoader(index=index)
        for path, _, hook in hooked:
            hook.weights_map = PrefixedDataset(loader, path)


def _read(hook: AlignDevicesHook, name: str, opened: dict[str, Any]) -> torch.Tensor:
    """A weight from the disk, as the hook would read it; each file is mapped once, however many of its weights are read."""
    loader = _loader(hook)
    path = hook.weights_map.prefix + name  # type: ignore[union-attr]
    file = loader.index.get(path, {}).get("safetensors_file")
    if file is None:
        return hook.weights_map[name]  # type: ignore[index]
    if file not in opened:
        opened[file] = safe_open(file, framework="pt")
    entry = loader.index[path]
    value: torch.Tensor = opened[file].get_tensor(entry["weight_name"])
    return value.to(getattr(torch, entry["dtype"])) if "dtype" in entry else value


def _hooked(block: nn.Module) -> list[tuple[str, nn.Module, AlignDevicesHook]]:
    """(path with a dot behind it, module, its hook) of the modules whose weights accelerate brings and takes away."""
    found = []
    for path, module in block.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if isinstance(hook, AlignDevicesHook) and isinstance(hook.weights_map, PrefixedDataset):
            found.append((f"{path}." if path else "", module, hook))
    return found


def _hooked_of(model: PreTrainedModel, layer: int) -> list[tuple[str, nn.Module, AlignDevicesHook]]:
    """`_hooked` modules of a layer; a network of channels has no layers."""
    layers = layers_of(model)
    return _hooked(layers[layer]) if layer < len(layers) else []


def _loader(hook: AlignDevicesHook) -> OffloadedWeightsLoader:
    loader: OffloadedWeightsLoader = hook.weights_map.dataset  # type: ignore[union-attr]
    return loader


def _folder(model: PreTrainedModel, loader: OffloadedWeightsLoader) -> Path:
    """Where cut layers of a model are written, inside of its `offload_folder` if it has one; it goes with the model.

    A lock beside it says whose it is: what a killed process left there goes.
    """
    if _FOLDER not in vars(model):
        place = Path(loader.save_folder or tempfile.gettempdir())
        for left in place.glob("cut-layers-*/"):
            lock = SoftFileLock(f"{left}.lock")
            with suppress(Timeout, OSError), lock.acquire(timeout=LOCK_PATIENCE, poll_interval=LOCK_PATIENCE / 10):
                shutil.rmtree(left, ignore_errors=True)
        folder = place / f"cut-layers-{uuid.uuid4().hex[:8]}"
        lock = SoftFileLock(f"{folder}.lock", thread_local=False)
        lock.acquire()
        folder.mkdir(mode=0o700)
        weakref.finalize(model, _discard, folder, lock)
        vars(model)[_FOLDER] = folder
    found: Path = vars(model)[_FOLDER]
    return found


def _discard(folder: Path, lock: SoftFileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()


__all__ = ["is_offloaded", "layers_on_disk", "resident", "rewritten"]
