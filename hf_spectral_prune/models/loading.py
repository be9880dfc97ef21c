"""Loads the model and tokenizer that a name, a folder or a GGUF file stands for, onto a device."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.hooks import remove_hook_from_module
from accelerate.utils.modeling import get_state_dict_offloaded_model
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.quantization_config import Mxfp4Config

from ..arguments import ModelArguments
from ..utils.environment import accelerator
from ..utils.files import strange_content
from ..utils.types import Options
from ..utils.words import first_line
from .families import family_of
from .folder_files import check_files, check_reached, read_config
from .loading_report import check_loaded, quiet_conversion, quiet_report
from .losses import check_outputs_have_names
from .offload import is_offloaded, layers_on_disk
from .stored import auto_class, check_not_quantised, check_whole_model, is_mxfp4

logger = logging.get_logger(__name__)


def choose_device(name: str) -> torch.device:
    """The device by name; "auto" takes the accelerator if there is one that has float64.

    Raises:
        ValueError: the device does not exist here, or has no float64.
    """
    if name == "auto":
        return accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type != "mps":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` `{name}` cannot be used here: {first_line(error)}.") from None
    if device.type == "mps":
        raise ValueError(f"`device` `{name}` has no float64, which scores are computed in. Set `device` to `cpu`.")
    return device


def load_model(run: ModelArguments, offload_folder: str | None = None) -> PreTrainedModel:
    """The model with the task head its checkpoint has, dense (GGUF files and MXFP4 are de-quantised), and with no weight made up.

    Args:
        offload_folder: where given, the weights of the layers stay on the disk (see `offload`), and what is written goes there.

    Raises:
        ValueError, FileNotFoundError, OSError: no model named, folder or file missing, or not a model; an adapter, quantised
            weights, or weights that are not those of the config.
    """
    name = model_name(run)
    options: Options = {"trust_remote_code": run.trust_remote_code, "dtype": run.dtype}
    if run.gguf_file is not None:
        if hasattr(transformers, "GgufConfig"):  # older ones always de-quantise
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        options["gguf_file"] = run.gguf_file
        options["dtype"] = "float32" if run.dtype == "auto" else run.dtype
    # Weights that are missing or do not fit would be made up at random with no more than a warning.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    auto = _auto_class(run, name)
    if run.gguf_file is None and is_mxfp4(read_config(name, run.trust_remote_code)):
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    if offload_folder is not None:
        options |= {"device_map": _disk_map(run, name, auto), "offload_folder": offload_folder}
    try:
        with quiet_report(), quiet_conversion():
            model, info = auto.from_pretrained(name, **options)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a class makes of values that it was not written for
        raise ValueError(
            f"`{name}` does not load: {_first_line(error)}. Take a `config.json` and weights that were saved together."
        ) from None
    check_loaded(model, info, name)
    check_outputs_have_names(model)
    model = without_quantisation_marks(model).eval()
    return model if offload_folder is not None else model.to(choose_device(run.device))  # type: ignore[arg-type]


def _disk_map(run: ModelArguments, name: str, auto: Any) -> dict[str, str]:
    if run.gguf_file is not None:
        raise ValueError("`offload_folder` is for safetensors, and `gguf_file` is read whole. Save that model as a folder first.")
    config = read_config(name, run.trust_remote_code)
    if family_of(config).stream_unknown:
        raise ValueError(
            f"The layers of `{config.model_type}` are not read from the disk one at a time: experts, encoder-decoders and types "
            "known by structure are held whole. Leave `offload_folder` out."
        )
    with init_empty_weights():
        model = auto.from_config(config, trust_remote_code=run.trust_remote_code)
    return layers_on_disk(model, choose_device(run.device))


def _auto_class(run: ModelArguments, name: str) -> Any:
    if run.gguf_file is not None:
        return transformers.AutoModelForCausalLM
    check_whole_model(name)
    config = read_config(name, run.trust_remote_code)
    check_not_quantised(config, name)
    text = config.get_text_config()
    if text is not config and _causal_class(config) == _causal_class(text) != "":
        # A model that sees images too, whose text model transformers loads alone.
        family_of(text)
        return transformers.AutoModelForCausalLM
    family_of(config)  # an unknown family is told before gigabytes are read
    return auto_class(config, name)


def _causal_class(config: PreTrainedConfig) -> str:
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ""))


def load_tokenizer(run: ModelArguments) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ValueError: the folder has none.
    """
    options = {"trust_remote_code": run.trust_remote_code}
    if run.gguf_file is not None:
        options["gguf_file"] = run.gguf_file  # type: ignore[assignment]
    name = model_name(run)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        tokenizer("It is tried on 1 text: some faults show only when a tokenizer is used.")
        return tokenizer
    except Exception as error:  # the tokenizers library raises plain exceptions
        check_reached(name, error)
        if run.gguf_file is not None:
            file = Path(name) / run.gguf_file
            strange = strange_content(file) or f"is no whole GGUF file with a tokenizer ({_first_line(error)}). Get it again."
            raise ValueError(f"`{file}` {strange}") from None
        raise ValueError(
            f"`{run.model_name_or_path}` has no tokenizer that loads ({_first_line(error)}). Put its files in that folder."
        ) from None


def model_name(run: ModelArguments) -> str:
    """Folder or Hub name of the model.

    Raises:
        ValueError, FileNotFoundError: none is named, or the folder holds no model.
    """
    name = run.model_name_or_path
    if not name or not name.strip():
        raise ValueError("There is no model. Write `cria COMMAND MODEL`, or set `model_name_or_path` to a folder or a Hub name.")
    path = Path(name)
    if "://" in name:
        raise ValueError(
            f"`model_name_or_path` `{name}` is an address. Name the model as the Hub does (`owner/name`), or a folder."
        )
    if path.is_file():
        more = f", and `gguf_file` to `{path.name}`" if path.suffix.lower() == ".gguf" else ""
        raise ValueError(f"`model_name_or_path` `{name}` is a file. Set it to the folder that holds it (`{path.parent}`){more}.")
    looks_local = path.is_absolute() or name.startswith(".") or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise FileNotFoundError(f"`model_name_or_path` `{name}` is not a folder. Check the path.")
    if path.is_dir() and run.gguf_file is None:
        check_whole_model(name)
    if path.is_dir() and run.gguf_file is None and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"`{name}` has no `config.json`, so it is no model folder. Name one, or set `gguf_file` to a GGUF file in it."
        )
    network = network_in(path) if path.is_dir() and run.gguf_file is None else None
    if network is not None:
        raise ValueError(
            f"`{name}` holds the plain network `{network}`, which transformers does not know. Set `network_class` to it and "
            "`tensors_file` to its inputs."
        )
    if path.is_dir() and run.gguf_file is not None and not (path / run.gguf_file).is_file():
        raise FileNotFoundError(f"`gguf_file` `{run.gguf_file}` is not in `{name}`. Name a file that is.")
    if path.is_dir() and run.gguf_file is None:
        check_files(path)
    return name


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"


def source_of(config: PreTrainedConfig) -> str | None:
    """The folder (its absolute path) or the name on the Hub that a model was loaded from."""
    name = getattr(config, "_name_or_path", "") or None
    return os.path.abspath(name) if name is not None and os.path.isdir(name) else name


def network_in(folder: Path) -> str | None:
    """`package.module:Class` of the pruned plain network that a folder holds; None where it holds another model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # transformers tells what is wrong with it
    return config.get("cria_network") if isinstance(config, dict) else None


def without_quantisation_marks(model: PreTrainedModel) -> PreTrainedModel:
    """Takes the marks of a de-quantised load (GGUF, MXFP4) off a model, so that it is saved as what it is.

    Raises:
        ValueError: the weights are really quantised, so they cannot be cut.
    """
    kept = getattr(model, "_weight_conversions", None)
    if kept:  # by which transformers would name plain weights as the packed ones that they were read from
        plain = [step for step in kept if not any("_blocks" in str(name) for name in step.source_patterns)]
        model._weight_conversions = plain  # type: ignore[assignment]
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return model
    method = getattr(quantizer.quantization_config.quant_method, "value", quantizer.quantization_config.quant_method)
    if method != "gguf" or getattr(quantizer, "packed_modules", None):
        raise ValueError(
            f"The model's weights are quantised ({method}) and cannot be cut. Load it without quantisation "
            "(for GGUF: `quantization_config=GgufConfig(dequantize=True)`) and quantise after pruning."
        )
    quantizer.remove_quantization_config(model)
    return model


def on_one_device(model: PreTrainedModel) -> PreTrainedModel:
    """Brings weights that a `device_map` has spread over devices, or offloaded to memory or the disk, to the CPU, in place.

    A model that lies on one device is left alone, and so is one of which only layers are on the disk (`is_offloaded`).

    Raises:
        ValueError: weights have no values, and no offload folder that holds them.
    """
    if is_offloaded(model):
        return model
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) == 1 and torch.device("meta") not in devices:
        return model
    if torch.device("meta") in devices and not any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ValueError(
            "The model's weights have no values: they were made on the `meta` device. Load them with `from_pretrained`, or build "
            'the model outside of `torch.device("meta")` and `init_empty_weights`.'
        )
    weights = get_state_dict_offloaded_model(model)
    remove_hook_from_module(model, recurse=True)
    vars(model).pop("hf_device_map", None)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    logger.warning(
        "The model's weights were spread by `device_map`. They are brought to the CPU's memory and pruned there; load the model "
        "without `device_map` and move it to an accelerator that has room for all of it to be faster."
    )
    return model.to("cpu")  # type: ignore[arg-type]
