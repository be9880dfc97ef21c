"""Loads the plain PyTorch network and the tensors that a command names."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.images import build_images
from ..data.tensors import _line, read_tensors
from ..data.texts import CalibrationData
from ..models.cria.channels import cria_class
from ..models.loading import choose_device
from ..models.torch_model import TorchModelForImageClassification, wrap
from ..utils.types import Json, Options
from ..utils.words import shortened
from .arguments import DataArguments, RunArguments

_WEIGHTS = "model.safetensors"
_PICKLES = (".pt", ".pth", ".th", ".bin")


def load_network(run: RunArguments) -> TorchModelForImageClassification:
    """The network of `network_class`, with the weights in `model_name_or_path`, traced with the first of its tensors.

    Raises:
        ValueError, FileNotFoundError: no such class, or it does not take its arguments; a file that is missing, no state dict
            or unsafe to read; weights that are not those of the class.
    """
    network_class = import_network(str(run.network_class))
    if not run.model_name_or_path:
        raise ValueError("There are no weights. Set `model_name_or_path` to a folder or a file of a state dict.")
    path = Path(run.model_name_or_path)
    if not path.exists():
        raise FileNotFoundError(f"`model_name_or_path` `{path}` does not exist. Name a folder, or a file of a state dict.")
    pixels, _ = read_tensors(str(run.tensors_file), "tensors_file")
    assert isinstance(run.network_args, dict)
    read = _from_folder if path.is_dir() else _from_file
    network = read(network_class, path, run.network_args)
    model = wrap(network.eval(), pixels[:1])
    model.config._name_or_path = str(path)
    return model.to(choose_device(run.device))  # type: ignore[arg-type]


def import_network(name: str) -> type[nn.Module]:
    """The class `package.module:Class`; the working directory is searched too, as by `python -m`.

    Raises:
        ValueError: it cannot be imported, or is no class of networks.
    """
    module_name, _, class_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except Exception as error:  # whatever the user's own module raises
        reason = _line(error)
        raise ValueError(
            f"`network_class` `{name}`: the module `{module_name}` cannot be imported ({reason}). Run the command where Python "
            "finds it, e.g. in the folder above it."
        ) from None
    if found is None:
        raise ValueError(f"`network_class` `{name}`: the module `{module_name}` has no `{class_name}`. Correct the name.")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"`network_class` `{name}` is no class derived from `torch.nn.Module`. Name the class, not a function.")
    return found


def _from_folder(network_class: type[nn.Module], folder: Path, arguments: Json) -> nn.Module:
    if not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(
            f"`{folder}` has no `{_WEIGHTS}`. Name a folder that PyTorchModelHubMixin's `save_pretrained` wrote, or the file of "
            "a state dict."
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # huggingface_hub prints, and a command's own output goes to stdout
            return cria_class(network_class).from_pretrained(folder, local_files_only=True, strict=True, **arguments)
    except Exception as error:  # whatever the network's own code raises
        raise _does_not_fit(network_class, folder, error) from None


def _from_file(network_class: type[nn.Module], file: Path, arguments: Json) -> nn.Module:
    state = read_state_dict(file)
    try:
        network = cria_class(network_class)(**arguments)  # of this class, because it records its arguments
    except Exception as error:  # whatever the network's own code raises
        raise ValueError(
            f"`{network_class.__name__}` cannot be made ({_line(error)}). Give its arguments by `network_args`."
        ) from None
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise _does_not_fit(network_class, file, error) from None
    return network


def _does_not_fit(network_class: type[nn.Module], path: Path, error: Exception) -> ValueError:
    # torch lists the weights from the second line on.
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    reason = lines[1] if len(lines) > 1 and lines[0].startswith("Error") else lines[0]
    return ValueError(
        f"`{path}` does not give a `{network_class.__name__}`: {shortened(reason).rstrip('.')}. Is it this `network_class`, with "
        "these `network_args`?"
    )


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a pickle that torch reads without running code (`weights_only=True`).

    The state dict may be the entry `state_dict` of a checkpoint, and its names may begin with DataParallel's `module.`.

    Raises:
        ValueError: another kind of file, one that is broken or holds more than tensors, or no state dict.
    """
    try:
        if file.suffix == ".safetensors":
            saved: Any = load_file(file)
        elif file.suffix in _PICKLES:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        else:
            raise ValueError(f"`{file}` is no file of weights. Give `.safetensors`, or a state dict in {', '.join(_PICKLES)}.")
    except pickle.UnpicklingError:
        raise ValueError(
            f"`{file}` holds more than tensors, or is broken, and is not read, because a pickle can run any code. Save "
            "`network.state_dict()` instead."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"`{file}` cannot be read: {_line(error)}. Save it again.") from None
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict) or not saved or not all(isinstance(value, Tensor) for value in saved.values()):
        raise ValueError(f"`{file}` holds no state dict. Save `network.state_dict()`, alone or as the entry `state_dict`.")
    if all(name.startswith("module.") for name in saved):
        saved = {name.removeprefix("module."): value for name, value in saved.items()}
    return saved


def load_tensors(data_args: DataArguments, seed: int) -> tuple[CalibrationData, CalibrationData | None]:
    """Calibration and held-out data of a plain network.

    Without `eval_tensors_file`, labelled rows are held out of `tensors_file` at random, a fifth at most.

    Raises:
        ValueError, FileNotFoundError: see `read_tensors`.
    """
    pixels, labels = read_tensors(str(data_args.tensors_file), "tensors_file")
    name, wanted = Path(str(data_args.tensors_file)).name, data_args.num_eval_samples or 0
    others: tuple[Tensor, Tensor | None] | None = None
    if data_args.eval_tensors_file and wanted:
        others, eval_name = read_tensors(data_args.eval_tensors_file, "eval_tensors_file"), Path(data_args.eval_tensors_file).name
        if others[0].shape[1:] != pixels.shape[1:]:
            raise ValueError(
                f"The inputs in `eval_tensors_file` have the shape {tuple(others[0].shape[1:])}, and those in `tensors_file` "
                f"{tuple(pixels.shape[1:])}. Give one shape."
            )
        if others[1] is None:
            raise ValueError(
                f"`eval_tensors_file` `{data_args.eval_tensors_file}` has no `labels`, so nothing can be measured on it."
            )
    elif labels is not None and (held := min(wanted, len(pixels) // 5)):
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
        rows, rest = order[:held].sort().values, order[held:].sort().values
        others, eval_name = (pixels[rows], labels[rows]), f"{name}, held out"
        pixels, labels = pixels[rest], labels[rest]
    options: Options = {"batch_size": data_args.calibration_batch_size, "seed": seed}
    number = data_args.num_calibration_samples
    calibration = build_images(_source(pixels, labels), num_samples=number, name=name, **options)
    if others is None:
        return calibration, None
    number = min(wanted, len(others[0]))
    return calibration, build_images(_source(*others), num_samples=number, name=eval_name, **options)


def tensor_recovery_rows(data_args: DataArguments, seed: int) -> list[dict[str, Tensor]]:
    """Rows to recover on: those of `tensors_file` that are not held out, at most `num_recovery_samples`, drawn by the seed."""
    data, _ = load_tensors(replace(data_args, num_calibration_samples=data_args.num_recovery_samples), seed)
    return [{name: value[row] for name, value in batch.items()} for batch in data for row in range(len(batch["pixel_values"]))]


def _source(pixels: Tensor, labels: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
    return pixels if labels is None else (pixels, labels)
