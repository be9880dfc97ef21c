"""Exports a language model to GGUF for llama.cpp, whose architectures for each family are in `gguf_families.py`."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...models.cria import stock_type
from ...utils.files import written_whole
from ...utils.types import Options
from ...utils.words import in_a_line
from .common import choose_output, read_config
from .gguf_architecture import Architecture, Shape
from .gguf_families import FAMILIES, NAMES
from .gguf_tensors import (
    F32,
    OUTTYPES,
    Shapes,
    check_weights,
    model_tensors,
    named_as_saved,
    open_weights,
    plan_tensors,
    write_tensors,
)
from .gguf_tokenizer import read_tokenizer

# What configs call the function in an FFN.
_ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function", "activation")
_POOLING = {
    "pooling_mode_cls_token": gguf.PoolingType.CLS,
    "pooling_mode_mean_tokens": gguf.PoolingType.MEAN,
    "pooling_mode_lasttoken": gguf.PoolingType.LAST,
}


def export_gguf(folder: str | Path, output_file: str | Path | None = None, outtype: str = "f16") -> Path:
    """Writes a model folder as one GGUF file, tokenizer included. Tensors are read and written one by one.

    Args:
        folder: of a pruned or any other language model of a family that llama.cpp has (`gguf_families.py`).
        output_file: by default `NAME-OUTTYPE.gguf` in the folder.
        outtype: f32, f16, bf16, q8_0 or q4_0. Norms and biases stay float32; with q4_0 the embeddings are q8_0.

    Returns:
        The file.

    Raises:
        FileNotFoundError: no such folder, or a file of the model is missing.
        ValueError: llama.cpp has no such model, a width does not fit the type, weights do not fit the config, or llama.cpp
            would cut text into other tokens (says what to change). Nothing is written.
    """
    if outtype not in OUTTYPES:
        raise ValueError(f"`outtype` `{outtype}` is unknown. Take one of {', '.join(OUTTYPES)}.")
    path, config = Path(folder), read_config(folder)
    output = choose_output(path, output_file, f"{path.resolve().name}-{outtype}.gguf", ".gguf")
    family, shape = _read_shape(path, config)
    try:
        wanted, unread = model_tensors(config)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"No model can be built from the config in `{folder}`: {in_a_line(error)}.") from None
    row = FAMILIES[family]
    wanted = named_as_saved(wanted, row)
    place = _choose(path, family, shape, wanted)
    wanted = {name: sizes for name, sizes in wanted.items() if not name.startswith(place.left_out)}
    with ExitStack() as stack:
        files = open_weights(path, stack)
        unread |= {name for name in files if name.startswith(place.left_out)}
        check_weights(path, wanted, unread, files)
        entries = plan_tensors(place, shape, wanted, outtype, row.experts)
        tokenizer = read_tokenizer(path, config.vocab_size)
        with written_whole(output) as temporary:
            writer = GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[place.arch])
            writer.add_name(_name(path.resolve().name, family, tokenizer.tokens))
            _write_metadata(writer, path, place, shape, outtype)
            tokenizer.write(writer)
            write_tensors(writer, entries, files, place, shape, _rope_tensors(shape))
    return output


# ---- what can be exported


def _read_shape(folder: Path, config: PreTrainedConfig) -> tuple[str, Shape]:
    """The family's name and the sizes of a model that llama.cpp may run."""
    family, architecture = stock_type(config.model_type), (config.architectures or [""])[0]
    if family not in FAMILIES:
        raise ValueError(_not_to_gguf(config, architecture))
    row = FAMILIES[family]
    if not architecture.endswith(row.classes):
        raise ValueError(
            f"`{folder}` holds a `{architecture}`; of this family `...{row.classes}` goes to GGUF only. Take a folder of that, "
            "or try `cria export onnx`."
        )
    activation = next(getattr(config, name) for name in _ACTIVATIONS if getattr(config, name, None))
    if activation not in row.activations:
        raise ValueError(
            f"`{folder}` computes `{activation}` in its FFNs; llama.cpp's {family} computes `{row.activations[-1]}`."
        )
    own = [config.per_layer_config[index] for index in range(config.num_hidden_layers)]
    layers = [row.sizes(one) for one in own]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return family, Shape(config, head_dim, layers)


def _choose(folder: Path, family: str, shape: Shape, wanted: Shapes) -> Architecture:
    """The first architecture of the family that holds the model."""
    reasons = []
    for place in FAMILIES[family].architectures:
        reason = _why_not(place, shape, wanted)
        if reason is None:
            return place
        reasons.append(f"its `{gguf.MODEL_ARCH_NAMES[place.arch]}` {reason}")
    uniform = "" if shape.alike else "Prune it with `--layout uniform`, or use `cria export onnx`."
    raise ValueError(
        f"`{folder}` is a {family} that llama.cpp cannot run: {'; '.join(reasons)}. {uniform or 'Use `cria export onnx`.'}"
    )


def _why_not(place: Architecture, shape: Shape, wanted: Shapes) -> str | None:
    """What keeps an architecture from holding a model, as said of the architecture."""
    rope, within = _ropes(shape.config)
    kinds = [part.get("rope_type", "default") for part in (rope, within) if part]
    other = [kind for kind in kinds if kind not in place.ropes] + [kind for kind in kinds[1:] if kind != "default"]
    modules = {name.removesuffix(".bias") for name in sorted(wanted) if name.endswith(".bias")}
    strange = sorted(module for module in modules if not module.endswith(place.biases))
    if not place.per_layer and not shape.alike:
        return "reads one FFN width and one number of heads for all layers"
    if place.whole_heads and shape.layers[0].heads * shape.head_dim != shape.config.hidden_size:
        return "has as many heads as fill the hidden size"
    if strange:
        return f"has no place for `{strange[0]}.bias`"
    if other:
        return f"does not compute `rope_parameters` of type `{other[0]}`, only {', '.join(place.ropes)}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not place.partial_rope:
        return "rotates whole heads, and this model a part of each (`partial_rotary_factor`)"
    if place.output == "tied" and not shape.config.tie_word_embeddings:
        return "takes the embeddings as output weights, and this model has its own"
    return place.lacks(shape)


def _not_to_gguf(config: PreTrainedConfig, architecture: str) -> str:
    return (
        f"A `{architecture}` (model type `{config.model_type}`) cannot be exported: only {NAMES} go to GGUF. `cria export onnx` "
        "may take it."
    )


# ---- metadata


def _name(name: str, family: str, tokens: list[str]) -> str:
    """The model's name; with Phi-3 in it only if its tokenizer is the first one of Phi-3.

    llama.cpp looks for that in the name: special tokens then take the spaces behind them, and some of them must be there.
    """
    first = family == "phi3" and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(tokens)
    named = re.search("phi-?3", name, re.IGNORECASE)
    if first:
        return name if named else f"{name} (Phi-3)"
    return re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)


def _write_metadata(writer: GGUFWriter, folder: Path, place: Architecture, shape: Shape, outtype: str) -> None:
    config, layers = shape.config, shape.layers
    writer.add_file_type(OUTTYPES[outtype][2])
    if OUTTYPES[outtype][0] not in (F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(layers))
    writer.add_context_length(_context_length(config, place))
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    for add, values in (
        (writer.add_feed_forward_length, [layer.width for layer in layers]),
        (writer.add_head_count, [layer.heads for layer in layers]),
        (writer.add_head_count_kv, [layer.kv_heads for layer in layers]),
    ):
        # Architectures without layers of their own sizes want one number.
        add(values if place.per_layer else values[0])  # type: ignore[operator]
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rope(writer, shape)
    if (pooling := _pooling(folder)) is not None:
        writer.add_pooling_type(pooling)
    place.metadata(writer, shape)


def _write_rope(writer: GGUFWriter, shape: Shape) -> None:
    rope, within = _ropes(shape.config)
    if not rope:
        return
    writer.add_rope_dimension_count(int(shape.head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if within is not None:
        writer.add_rope_freq_base_swa(within["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        _, factor = ROPE_INIT_FUNCTIONS["longrope"](shape.config, "cpu")
        writer.add_rope_scaling_attn_factors(factor)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _pooling(folder: Path) -> gguf.PoolingType | None:
    """How a folder of sentence-transformers makes one vector of many, where llama.cpp can do the same."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return None
    modes = json.loads(file.read_text(encoding="utf-8"))
    on = [name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True]
    return _POOLING.get(on[0]) if len(on) == 1 else None


def _context_length(config: PreTrainedConfig, place: Architecture) -> int:
    """Positions for which llama.cpp computes the same; where it attends to everything, no further than a sliding window."""
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) if slides and not place.windows else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def _ropes(config: PreTrainedConfig) -> tuple[Options, Options | None]:
    """The rotation of layers that attend to everything, and of those within a window where they have their own;
    empty for a model with learned positions."""
    rope = getattr(config, "rope_parameters", None) or {}
    if "full_attention" not in rope:
        return rope, None
    return rope["full_attention"], rope["sliding_attention"]


def _rope_tensors(shape: Shape) -> dict[str, np.ndarray]:
    """Factors that divide the rotation's frequencies, (rotated channels / 2,): Llama 3's, or of short and of long contexts."""
    rope, _ = _ropes(shape.config)
    if rope.get("rope_type") == "longrope":
        names = {"long_factor": gguf.MODEL_TENSOR.ROPE_FACTORS_LONG, "short_factor": gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT}
        return {gguf.TENSOR_NAMES[kind] + ".weight": np.array(rope[name], np.float32) for name, kind in names.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](shape.config, "cpu")
    plain = rope["rope_theta"] ** -(torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    return {gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight": (plain / scaled).numpy()}
