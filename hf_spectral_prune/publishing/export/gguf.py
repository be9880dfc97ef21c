"""Exports a decoder to GGUF for llama.cpp: architecture `llama` where layers are alike, `deci` where they differ.

`deci` is llama.cpp's architecture for Llamas whose layers have their own FFN widths and head counts (Nemotron-NAS), so stock
llama.cpp runs per-layer Crias. Both rotate neighbouring channels of a head, where transformers rotates its two halves: the
rows of the query and key projections are reordered for it, in every layer with that layer's own number of heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...models.cria import stock_type
from ...utils.files import written_whole
from .common import choose_output, read_config
from .gguf_tokenizer import read_tokenizer

# outtype -> (type of matrices, type of embeddings and output, type of the file). Four bits are too few for the embeddings,
# which in small models are a third of all parameters.
_Q8_0, _F16, _F32 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16, GGMLQuantizationType.F32
OUTTYPES = {
    "f32": (_F32, _F32, LlamaFileType.ALL_F32),
    "f16": (_F16, _F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (_Q8_0, _Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, _Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
# family -> (architecture where all layers are alike, where they differ). llama.cpp's `deci` has no norms of queries and keys.
_ARCHITECTURES: dict[str, tuple[MODEL_ARCH, MODEL_ARCH | None]] = {
    "llama": (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI),
    "mistral": (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI),
    "qwen2": (MODEL_ARCH.QWEN2, MODEL_ARCH.DECI),
    "qwen3": (MODEL_ARCH.QWEN3, None),
}
_PERMUTED = (MODEL_ARCH.LLAMA, MODEL_ARCH.DECI)
# Linear layers that may have a bias; with `_PERMUTED` all may.
_BIASES = {MODEL_ARCH.QWEN2: ("q_proj", "k_proj", "v_proj"), MODEL_ARCH.QWEN3: ()}
_EMBEDDINGS, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


# {tensor name: open file that holds it}.
Weights = dict[str, safe_open]


@dataclass(frozen=True)
class _Layer:
    """Sizes of one layer."""

    width: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class _Shape:
    """Sizes of a whole model, as its config says them."""

    config: PreTrainedConfig
    arch: MODEL_ARCH
    head_dim: int
    layers: list[_Layer]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """{name in transformers: shape} of every tensor that the model must have."""
        hidden, vocabulary = self.config.hidden_size, self.config.vocab_size
        shapes: dict[str, tuple[int, ...]] = {_EMBEDDINGS: (vocabulary, hidden)}
        for index, layer in enumerate(self.layers):
            queries, keys = layer.heads * self.head_dim, layer.kv_heads * self.head_dim
            inside: dict[str, tuple[int, ...]] = {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (queries, hidden),
                "self_attn.k_proj": (keys, hidden),
                "self_attn.v_proj": (keys, hidden),
                "self_attn.o_proj": (hidden, queries),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (layer.width, hidden),
                "mlp.up_proj": (layer.width, hidden),
                "mlp.down_proj": (hidden, layer.width),
            }
            if self.arch == MODEL_ARCH.QWEN3:
                inside |= {"self_attn.q_norm": (self.head_dim,), "self_attn.k_norm": (self.head_dim,)}
            shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in inside.items()}
        shapes["model.norm.weight"] = (hidden,)
        if not self.config.tie_word_embeddings:
            shapes[_OUTPUT] = (vocabulary, hidden)
        return shapes


@dataclass(frozen=True)
class _Entry:
    """One tensor on its way into the file."""

    source: str
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    heads: int | None  # number of heads whose rows are reordered, if any


def export_gguf(folder: str | Path, output_file: str | Path | None = None, outtype: str = "f16") -> Path:
    """Writes a model folder as one GGUF file, tokenizer included. Tensors are read and written one by one.

    Args:
        folder: of a pruned or any other Llama, Mistral, Qwen2 or Qwen3 with a language model head.
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
    shape = _read_shape(path, config)
    extra = _rope_tensor(shape)
    with ExitStack() as stack:
        files = _open_weights(path, stack)
        entries = _entries(path, shape, files, outtype)
        tokenizer = read_tokenizer(path, shape.config.vocab_size)
        with written_whole(output) as temporary:
            writer = GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[shape.arch])
            _write_metadata(writer, path, shape, outtype)
            tokenizer.write(writer)
            _write_tensors(writer, entries, files, extra)
    return output


# ---- what can be exported


def _read_shape(folder: Path, config: PreTrainedConfig) -> _Shape:
    family = stock_type(config.model_type)
    architecture = (config.architectures or [""])[0]
    if family not in _ARCHITECTURES:
        raise ValueError(_not_to_gguf(config, family, architecture))
    if not architecture.endswith("ForCausalLM"):
        raise ValueError(f"`{folder}` holds a `{architecture}`; to GGUF go language models (`...ForCausalLM`) only.")
    if config.hidden_act != "silu":
        raise ValueError(f"`{folder}` computes `{config.hidden_act}` in its FFNs; llama.cpp's {family} computes `silu`.")
    own = [config.per_layer_config[index] for index in range(config.num_hidden_layers)]
    layers = [_Layer(one.intermediate_size, one.num_attention_heads, one.num_key_value_heads) for one in own]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    uniform, per_layer = _ARCHITECTURES[family]
    arch = uniform if _fits_uniform(config, uniform, head_dim, layers) else per_layer
    if arch is None:
        raise ValueError(
            f"`{folder}` is a {family} whose layers differ or have biases from compensation, which llama.cpp cannot run: its "
            f"only architecture for that (`deci`) lacks {family}'s norms of queries and keys. Prune it with `--layout uniform`, "
            "or use `cria export onnx`."
        )
    return _Shape(config, arch, head_dim, layers)


def _fits_uniform(config: PreTrainedConfig, arch: MODEL_ARCH, head_dim: int, layers: list[_Layer]) -> bool:
    if len(set(layers)) > 1:
        return False
    # llama.cpp's Qwen2 has as many heads as fill the hidden size, and no biases of a repair; its Qwen3 lacks only the latter.
    whole = arch != MODEL_ARCH.QWEN2 or layers[0].heads * head_dim == config.hidden_size
    return arch == MODEL_ARCH.LLAMA or (whole and not getattr(config, "consumer_bias", None))


def _not_to_gguf(config: PreTrainedConfig, family: str, architecture: str) -> str:
    known = "Llama, Mistral, Qwen2 and Qwen3 language models go to GGUF"
    if family == "bert":
        why = (
            "its layers differ or have fewer heads, which llama.cpp's `bert` cannot run"
            if config.is_heterogeneous
            else "it is stock"
        )
        stock = "Pruned with `--layout uniform --units ffn` it is a stock BERT, for llama.cpp's own converter"
        return (
            f"This is a BERT (`{architecture}`; {why}), and only {known} here. Use `cria export onnx`, for any layout. {stock}."
        )
    return (
        f"A `{architecture}` (model type `{config.model_type}`) cannot be exported: only {known}. `cria export onnx` may take it."
    )


# ---- weights


def _open_weights(folder: Path, stack: ExitStack) -> Weights:
    """{tensor name: open file that holds it}; nothing is read yet."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"`{index}` is no index of weights. Save the model again.") from None
    else:
        names = ["model.safetensors"]
    files = {}
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"`{folder}` has no `{name}`. Save the model again (`save_pretrained` writes safetensors).")
        try:
            file = stack.enter_context(safe_open(folder / name, framework="pt"))
        except SafetensorError as error:
            raise ValueError(f"`{folder / name}` is no safetensors file ({error}). Save the model again.") from None
        files.update(dict.fromkeys(file.keys(), file))
    return files


def _entries(folder: Path, shape: _Shape, files: Weights, outtype: str) -> list[_Entry]:
    """Every tensor of the file, in the model's order, checked against the config and the type."""
    wanted = shape.tensors()
    found = {name: tuple(file.get_slice(name).get_shape()) for name, file in files.items()}
    if shape.config.tie_word_embeddings:
        found.pop(_OUTPUT, None)
    biased = _BIASES.get(shape.arch, ("proj",))
    biases = {
        f"{module}.bias": rows[:1]
        for module, rows in ((name.removesuffix(".weight"), rows) for name, rows in wanted.items())
        if module.endswith(biased)
    }
    for name in sorted(wanted.keys() | found.keys()):
        expected = wanted.get(name) or biases.get(name)
        if name not in found:
            raise ValueError(f"The weights in `{folder}` lack `{name}`, which the config asks for. Save the model again.")
        if expected is None:
            raise ValueError(f"The weights in `{folder}` have `{name}`, which llama.cpp has no place for.")
        if found[name] != expected:
            raise ValueError(
                f"`{name}` in `{folder}` is {found[name]}, but its config says {expected}. Weights and config do not belong "
                "together: was a file changed by hand? Save the model again."
            )
    names = gguf.get_tensor_name_map(shape.arch, len(shape.layers))
    matrix, embedding, _ = OUTTYPES[outtype]
    order = {name: place for place, name in enumerate(wanted)}
    entries = []
    for source in sorted(found, key=lambda name: order[name.removesuffix("bias") + "weight"] if name in biases else order[name]):
        stored = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert stored is not None, source
        kind = _F32 if len(found[source]) == 1 else embedding if source in (_EMBEDDINGS, _OUTPUT) else matrix
        _check_row(source, found[source], kind, outtype)
        entries.append(_Entry(source, stored, found[source], kind, _heads_to_permute(shape, source)))
    return entries


def _check_row(source: str, shape: tuple[int, ...], kind: GGMLQuantizationType, outtype: str) -> None:
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if shape[-1] % block == 0:
        return
    remedy = "Export `--outtype f16`"
    if source.endswith("mlp.down_proj.weight"):
        remedy = f"Prune with `--round_to {block}`, so that FFN widths are multiples of {block}, or export `--outtype f16`"
    raise ValueError(
        f"`{source}` has rows of {shape[-1]:,} values, which {outtype} stores in blocks of {block}: no multiple. {remedy}."
    )


def _heads_to_permute(shape: _Shape, source: str) -> int | None:
    if shape.arch not in _PERMUTED or ".self_attn." not in source:
        return None
    layer = shape.layers[int(source.split(".")[2])]
    return {"q_proj": layer.heads, "k_proj": layer.kv_heads}.get(source.split(".")[4])


def interleave_halves(rows: Tensor, heads: int) -> Tensor:
    """Reorders (heads * D, ...) rows so that the two halves of every head's D channels alternate: 0, D/2, 1, D/2 + 1, ...

    transformers rotates channel i of a head with channel i + D/2, llama.cpp's normal rotation 2i with 2i + 1.
    """
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def _write_tensors(writer: GGUFWriter, entries: list[_Entry], files: Weights, extra: dict[str, np.ndarray]) -> None:
    try:
        for name, values in extra.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for entry in entries:
            block, size = gguf.GGML_QUANT_SIZES[entry.kind]
            stored = (*entry.shape[:-1], entry.shape[-1] // block * size)
            writer.add_tensor_info(entry.name, stored, np.dtype(np.uint8), int(np.prod(stored)), entry.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in (*extra.values(), *_converted(entries, files)):
            writer.write_tensor_data(values)
    finally:
        writer.close()


def _converted(entries: list[_Entry], files: Weights) -> Iterator[np.ndarray]:
    """The bytes of every tensor in turn."""
    for entry in entries:
        tensor = files[entry.source].get_tensor(entry.source).float()
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"`{entry.source}` holds values that are not finite. Such a model cannot be exported.")
        if entry.heads is not None:
            tensor = interleave_halves(tensor, entry.heads)
        if entry.kind == _F16 and float(tensor.abs().max()) > torch.finfo(torch.float16).max:
            raise ValueError(f"`{entry.source}` has values too large for f16. Export `--outtype bf16` or `f32`.")
        yield gguf.quantize(tensor.contiguous().numpy(), entry.kind).view(np.uint8)


# ---- metadata


def _write_metadata(writer: GGUFWriter, folder: Path, shape: _Shape, outtype: str) -> None:
    config, layers = shape.config, shape.layers
    writer.add_name(folder.resolve().name)
    writer.add_file_type(OUTTYPES[outtype][2])
    if OUTTYPES[outtype][0] not in (_F32, _F16, GGMLQuantizationType.BF16):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(layers))
    writer.add_context_length(_context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for add, values in (
        (writer.add_feed_forward_length, [layer.width for layer in layers]),
        (writer.add_head_count, [layer.heads for layer in layers]),
        (writer.add_head_count_kv, [layer.kv_heads for layer in layers]),
    ):
        # Architectures without layers of their own sizes want one number.
        add(values if shape.arch == MODEL_ARCH.DECI else values[0])  # type: ignore[operator]
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _context_length(config: PreTrainedConfig) -> int:
    """Positions for which llama.cpp computes the same: it attends to everything, so no further than a sliding window."""
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    window = getattr(config, "sliding_window", None) if slides else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def _rope_tensor(shape: _Shape) -> dict[str, np.ndarray]:
    """Factors that divide the rotation's frequencies, (head_dim / 2,), for Llama 3's scaling.

    Raises:
        ValueError: another scaling than none, linear or llama3.
    """
    config, rope = shape.config, shape.config.rope_parameters
    kind = rope["rope_type"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0 or kind not in ("default", "linear", "llama3"):
        raise ValueError(f"`rope_parameters` of type `{kind}` cannot be exported to GGUF, only default, linear and llama3.")
    if kind != "llama3":
        return {}
    if shape.arch not in _PERMUTED:
        raise ValueError(f"llama.cpp's `{gguf.MODEL_ARCH_NAMES[shape.arch]}` has no place for a llama3 `rope_parameters`.")
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    plain = rope["rope_theta"] ** -(torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    return {gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight": (plain / scaled).numpy()}
