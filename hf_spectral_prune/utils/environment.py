"""What a report says about the machine and the libraries: versions and peak memory."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

_LIBRARIES = ("hf_spectral_prune", "torch", "transformers", "accelerate", "datasets", "safetensors", "numpy", "scipy")


def library_versions() -> dict[str, str]:
    """{name: version} of Python and of the libraries a run depends on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES}


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def accelerator() -> torch.device | None:
    """The accelerator that pruning can use; None without one, and for Apple's MPS, which has no float64."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None or found.type == "mps" else found


def emulates(dtype: torch.dtype) -> bool:
    """Whether this CPU computes a half-precision type without instructions for it, several times slower than float32.

    False where that is not known: on other processors than x86, and with a torch before 2.10.
    """
    short = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if short is None or known.get("architecture") != "x86_64":
        return False
    return not any(known.get(f"{unit}_{short}") for unit in ("avx512", "amx"))


def machine() -> dict[str, str | int]:
    """The machine in words: processor count, threads used by torch, and the accelerator if there is one."""
    device_name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "accelerator": device_name,
    }


def peak_memory() -> dict[str, int]:
    """Peak bytes so far: `host` is this process's largest resident set, `accelerator` what torch allocated there."""
    return {"host": _peak_resident(), "accelerator": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    # Not `getrusage` at once: on Linux its figure is handed down from the process that started this one.
    for line in status.read_text(encoding="utf-8").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):  # not in every container
            return int(line.split()[1]) * 1024
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
