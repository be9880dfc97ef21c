"""Two sets of weights in one folder: the one that is read and the other one must be the same."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

# Places of a weight that are compared: a training moves nearly all of them.
_SAMPLED = 64


def differing_weight(read: Sequence[Path], others: Sequence[Path]) -> str | None:
    """The name of the first weight that pickled files hold with other values than the safetensors files that are read.

    Weights that only one of the sets has (tied ones, buffers, names of older versions) say nothing, and neither do values that
    were rounded to another type. A pickled file that does not load is no set.

    Args:
        read: the safetensors files.
        others: the pickled files.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in read]
        places = {name: weights for weights in opened for name in list(weights.keys())}
        for file in others:
            try:
                pickled = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
            except Exception:  # a broken pickle can raise anything
                return None
            for name, value in pickled.items() if isinstance(pickled, dict) else ():
                if name in places and isinstance(value, Tensor) and not _same(places[name].get_tensor(name), value):
                    return str(name)
    return None


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    step = max(1, left.numel() // _SAMPLED)
    left, right = left.reshape(-1)[::step], right.reshape(-1)[::step]
    return bool((left.to(right.dtype) == right).all() or (right.to(left.dtype) == left).all())
