"""Proves a saved folder by reloading it in a fresh process and comparing its outputs with the model's."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.utils import send_to_device
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..models.cria import auto_class_of
from ..models.families import network_of
from ..models.families.groups import is_audio, is_vision
from ..models.families.tracing import example_input
from ..models.loading_report import is_pooler, named
from ..models.losses import with_decoder_inputs
from ..models.modes import evaluating
from ..utils.types import Json

logger = logging.get_logger(__name__)

_SELF_CHECK = Path(__file__).with_name("selfcheck.py")


# Largest difference of a logit, relative to the largest logit, that the same weights may show. On one CPU it is zero; an
# accelerator may choose another kernel in another process.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}


_REMEDY = "Prune a class of transformers as it is, or set `self_check=False` to load it yourself"


def probe_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Fixed random token ids on which two copies of a model are compared: 2 sequences of up to 64 tokens, (2, T).

    For multiple choice they are 2 questions with 2 choices each, (2, 2, T); for models that read images, 2 images of noise; for
    those that read sounds, 2 of noise with 16 tokens each.
    For sequence classification without a pad token it is one sequence, as its end cannot be told among others.
    """
    if is_vision(model):
        image = example_input(model).to(model.dtype)
        return {"pixel_values": torch.cat([image, -image])}
    generator = torch.Generator().manual_seed(0)
    if is_audio(model):
        shape = (2, model.config.num_mel_bins, 2 * model.config.max_source_positions)
        ids = torch.randint(0, model.config.vocab_size, (2, 16), generator=generator)
        return {"input_features": torch.randn(shape, generator=generator).to(model.dtype), "decoder_input_ids": ids}
    # Not to the last position: RoBERTa's numbering begins behind its pad token.
    config = model.config.get_text_config()
    length = min(64, (getattr(config, "max_position_embeddings", None) or 128) // 2)
    task = auto_class_of(type(model))
    rows = (2, 2) if task == "AutoModelForMultipleChoice" else (2,)
    if task == "AutoModelForSequenceClassification" and getattr(model.config, "pad_token_id", None) is None:
        rows = (1,)
    input_ids = torch.randint(0, config.vocab_size, (*rows, length), generator=generator)
    # One pad token at most: sequence classifiers look for the last real one.
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    return with_decoder_inputs(model, inputs) if model.config.is_encoder_decoder else inputs


def check_reloads(model: PreTrainedModel) -> None:
    """Tells before any work of a model that would not come back from its folder as it is: what a head of one's own, an added
    parameter or a changed `forward` lead to. What `to(torch.bfloat16)` has rounded of it, it makes anew (see `_unround`).

    The class that will load the folder is given the same weights, without a copy of them, and compared on `probe_inputs`.

    Raises:
        ValueError: it has no place for some of the weights, or computes something else.
    """
    if network_of(model) is not model:  # a plain network is loaded by its own class
        return
    fresh = stand_in(model, model.config, dict(model.state_dict()))
    _unround(model, fresh)
    inputs = send_to_device(probe_inputs(model), model.device)
    expected, found = (first_output(each, inputs) for each in (model, fresh))
    if not bool(expected.isfinite().all()):  # another check's business
        return
    name = type(fresh).__name__
    tolerance = TOLERANCE.get(model.dtype, 1e-5) * max(1.0, float(expected.abs().max()))
    if expected.shape != found.shape or not float((expected - found).abs().max()) <= tolerance:
        raise ValueError(
            f"`{type(model).__name__}` computes something else than `{name}`, the class that loads the saved folder, with "
            f"the same weights. {_REMEDY}."
        )


def _unround(model: PreTrainedModel, fresh: PreTrainedModel) -> None:
    """Makes buffers that are not saved anew where only their type was narrowed: a rotary embedding's frequencies, for one.

    A model that is loaded in a narrow type has them in float32, and so will the saved folder.
    """
    exact, saved = dict(fresh.named_buffers()), model.state_dict().keys()
    narrow = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in exact and name not in saved and buffer.dtype != exact[name].dtype and not buffer.is_meta
    }
    rounded = [name for name, buffer in narrow.items() if torch.equal(exact[name].to(buffer), buffer)]
    for name in rounded:
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, exact[name].to(model.device))
    if rounded:
        logger.warning(
            f"{named(rounded)} of the model had been rounded with its weights (`to(torch.bfloat16)` does that, `from_pretrained` "
            "does not): made anew in float32, as the saved folder has them."
        )


def stand_in(model: PreTrainedModel, config: PreTrainedConfig, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A model of the class that will load the saved folder, as `config` says, with the weights `state` of `model`, not copied.

    Raises:
        ValueError: the class has no place for some of them, or there is none.
    """
    options, auto = {"attn_implementation": model.config._attn_implementation}, getattr(transformers, auto_class_of(type(model)))
    if type(config).__module__.startswith("transformers.") and type(config) not in auto._model_mapping:
        raise ValueError(
            f"`{type(model).__name__}` alone is loaded by no Auto class of transformers. Prune it inside the model that it is a "
            "part of, leave `output_dir` out and save the whole."
        )
    # Buffers that are not saved (of the rotary embedding) are made; weights are not.
    with init_empty_weights(include_buffers=False):
        fresh: Any = auto.from_config(copy.deepcopy(config), **options)
    prefix = f"{model.base_model_prefix}." if fresh.base_model is fresh and model.base_model is not model else ""
    own = {key.removeprefix(prefix): value for key, value in state.items()}
    place = fresh.state_dict()
    parameters = {key.removeprefix(prefix) for key, _ in model.named_parameters()}
    foreign = [key for key, value in own.items() if key in parameters and (key not in place or place[key].shape != value.shape)]
    if foreign:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ValueError(
            f"`{type(model).__name__}` has `{foreign[0]}`{others}, for which `{type(fresh).__name__}`, the class that loads the "
            f"saved folder, has no place. {_REMEDY}."
        )
    absent = {
        key: torch.zeros(value.shape, device=model.device, dtype=model.dtype) for key, value in place.items() if key not in own
    }
    fresh.load_state_dict(absent | {key: value for key, value in own.items() if key in place}, assign=True)
    fresh.tie_weights()
    return fresh.to(model.device)


@torch.inference_mode()
def first_output(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first output of a model in evaluation mode, float32."""
    with evaluating(model):
        return model(**inputs)[0].float()


def check_in_fresh_process(folder: Path, model: PreTrainedModel) -> Json:
    """Loads `folder` in a new process, with Auto classes only, and compares its output with the model's.

    A per-layer folder is loaded twice: by `trust_remote_code=True` without this package, and with the package imported.

    Returns:
        {way: {"class", "max_abs_diff", "parameters"}} for every way of loading that was tried.

    Raises:
        RuntimeError: it does not load, or the outputs differ; names the first weights that differ.
    """
    inputs = probe_inputs(model)
    with evaluating(model), torch.inference_mode():
        expected = model(**send_to_device(inputs, model.device))[0]
    # In the folder, so that what a killed run leaves of it goes with the folder.
    with tempfile.TemporaryDirectory(prefix=".check-", dir=folder) as scratch:
        probe = Path(scratch) / "probe.safetensors"
        save_file({**inputs, "expected": expected.float().cpu().contiguous()}, probe)
        command = [sys.executable, str(_SELF_CHECK), str(folder), str(probe), str(torch.get_num_threads())]
        command += [model.config._attn_implementation or "eager", str(model.device), auto_class_of(type(model))]
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(scratch) / "modules"), "HF_HUB_OFFLINE": "1"}
        # This package, and the class of a plain network, are imported from where this process has them, which a script or a
        # notebook may have put into `sys.path` itself.
        # Not the cache of remote code, which `evaluate` puts there: it would be taken for the one that belongs to this check.
        own = [path for path in sys.path if path and not Path(path, "transformers_modules").is_dir()]
        environment["PYTHONPATH"] = os.pathsep.join(own)
        done = _run_beside(command, environment)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"The saved folder does not load in a fresh process: {reason}")
    results = json.loads(done.stdout.strip().splitlines()[-1])
    for way, result in results.items():
        _compare(way, result, model)
    hidden = ("sums", "missing")
    return {way: {name: value for name, value in result.items() if name not in hidden} for way, result in results.items()}


def _run_beside(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a process that ends when this one does: this end of its stdin is never written to, only closed."""
    watched, held = os.pipe()
    try:
        return subprocess.run(command, stdin=watched, capture_output=True, text=True, env=environment, check=False)
    finally:
        os.close(watched)
        os.close(held)


def _compare(way: str, result: Json, model: PreTrainedModel) -> None:
    own = network_of(model).state_dict()
    # The Auto class of an encoder has a pooler, also where the model was made without one.
    missing = [name for name in result.get("missing", []) if name in own or not is_pooler(name)]
    if missing:
        raise RuntimeError(f"The saved folder lacks weights: {named(missing)} would be made up at random ({way}).")
    tolerance = result["allowed"] = TOLERANCE.get(model.dtype, 1e-5) * max(1.0, result["max_abs"])
    if result["max_abs_diff"] <= tolerance:
        return
    sums = {name: float(value.double().sum()) for name, value in own.items()}
    differing = [name for name, value in sums.items() if result["sums"].get(name) != value]
    what = f"the first weight that differs is `{differing[0]}`" if differing else "all weights are equal, so the config differs"
    raise RuntimeError(
        f"The reloaded {result['class']} ({way}) gives outputs that differ by {result['max_abs_diff']:.3g} "
        f"(allowed {tolerance:.3g}); {what}."
    )
