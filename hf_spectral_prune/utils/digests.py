"""Short digests of data, to tell one from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch


def data_digest(rows: Iterable[Mapping[str, object]]) -> str:
    """Short digest of batches or rows."""
    digest = hashlib.sha256()
    for row in rows:
        for name in sorted(row):
            value = row[name]
            digest.update(f"{name}/{getattr(value, 'shape', '')}".encode())
            if isinstance(value, torch.Tensor):
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                digest.update(str(value).encode())
    return digest.hexdigest()[:16]
