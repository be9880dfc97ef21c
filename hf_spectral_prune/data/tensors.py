"""Tensors for plain networks, from `.npz` and `.safetensors` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..utils.words import first_line, shortened


def read_tensors(file: str, setting: str) -> tuple[Tensor, Tensor | None]:
    """`pixel_values` (N, ...) and `labels` (N,), None if there are none, of a `.npz` or `.safetensors` file.

    Raises:
        ValueError, FileNotFoundError: another or a broken file, an array that is missing or of another kind.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"`{setting}` `{file}` does not exist. Name a `.npz` or `.safetensors` file.")
    try:
        if path.suffix == ".safetensors":
            arrays = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: torch.from_numpy(found[name]) for name in ("pixel_values", "labels") if name in found}
        else:
            raise ValueError(f"its name ends in `{path.suffix}`, not in `.npz` or `.safetensors`")
    except (SafetensorError, ValueError, TypeError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"`{setting}` `{file}` cannot be read: {_line(error)}. Write it again.") from None
    pixels, labels = arrays.get("pixel_values"), arrays.get("labels")
    if pixels is None:
        raise ValueError(f"`{setting}` `{file}` has no array `pixel_values`. Save the network's inputs (N, ...) under this name.")
    if not pixels.is_floating_point() or pixels.dim() < 2 or len(pixels) == 0:
        raise ValueError(
            f"`pixel_values` in `{file}` is {pixels.dtype} of shape {tuple(pixels.shape)}. Give floating-point inputs (N, ...), "
            "as the network takes them."
        )
    if labels is not None and (labels.shape != pixels.shape[:1] or labels.is_floating_point()):
        raise ValueError(
            f"`labels` in `{file}` is {labels.dtype} of shape {tuple(labels.shape)}. Give a whole number for each of the "
            f"{len(pixels)} inputs."
        )
    return pixels, None if labels is None else labels.long()


def _line(error: Exception) -> str:
    return shortened(first_line(error))
