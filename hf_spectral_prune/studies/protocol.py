"""What a study's figures depend on: the model, the data and the options, told apart by digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from transformers import PreTrainedModel

from ..data.texts import CalibrationData
from ..evaluation.figures import num_parameters
from ..utils.digests import data_digest
from ..utils.environment import library_versions
from ..utils.types import Json

# Values that a model's digest takes from each of its tensors.
_DIGEST_SAMPLES = 64


def study_protocol(
    model: PreTrainedModel,
    calibration: CalibrationData | None,
    held_out: CalibrationData,
    compute_metrics: Callable[..., object] | None = None,
    train_dataset: Iterable[Mapping[str, object]] | None = None,
) -> Json:
    """What the figures depend on beside the cells' options: the model and the data, with a digest of each.

    Args:
        train_dataset: rows that recoveries train on; None where there are none.
    """
    name = Path(model.config._name_or_path)
    measures = None if compute_metrics is None else getattr(compute_metrics, "__qualname__", type(compute_metrics).__name__)
    protocol: Json = {
        "model": {
            # The last part of a folder's path alone: where a model lies on one machine says nothing on another.
            "name": name.name if name.is_absolute() or name.exists() else model.config._name_or_path,
            "class": type(model).__name__,
            "parameters": num_parameters(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "digest": model_digest(model),
        },
        "calibration": None if calibration is None else calibration.protocol | {"digest": data_digest(calibration.batches)},
        "evaluation": {
            **held_out.protocol,
            "compute_metrics": measures,
            "digest": data_digest([*held_out.batches, {"compute_metrics": measures}]),
        },
        "package": library_versions()["hf_spectral_prune"],
    }
    if train_dataset is not None:
        protocol["training"] = {"digest": data_digest(train_dataset)}
    return protocol


def model_digest(model: PreTrainedModel) -> str:
    """Short digest of a model's config and of a few values of each of its tensors."""
    config = {
        name: value for name, value in model.config.to_dict().items() if name not in ("_name_or_path", "transformers_version")
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        sample = value.flatten()[:: max(1, value.numel() // _DIGEST_SAMPLES)].double().cpu()
        digest.update(f"{name}/{tuple(value.shape)}/{value.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def cell_key(protocol: Mapping[str, object], options: Mapping[str, object]) -> str:
    """The name of a cell's file: a digest of all that decides about its figures."""
    data = {name: part["digest"] if isinstance(part, dict) else part for name, part in protocol.items()}
    if options.get("recovery", "none") == "none":
        data.pop("training", None)
    text = json.dumps([data, options], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
