"""The tensors of a GGUF file: where each comes from in a model folder, what is done to it, and the bytes it becomes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto import AutoModel, AutoModelForCausalLM

from .gguf_architecture import Architecture, Layer, Row, Shape

# outtype -> (type of matrices, type of embeddings and output, type of the file). Four bits are too few for the embeddings,
# which in small models are a third of all parameters.
_Q8_0, _F16, F32 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16, GGMLQuantizationType.F32
OUTTYPES = {
    "f32": (F32, F32, LlamaFileType.ALL_F32),
    "f16": (_F16, _F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (_Q8_0, _Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, _Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
_EMBEDDINGS, _OUTPUT = "model.embed_tokens", "lm_head"
_BY_TOKEN = (
    *(_EMBEDDINGS, _OUTPUT, "embeddings.word_embeddings", "transformer.word_embeddings", "transformer.wte"),
    *("gpt_neox.embed_in", "embed_out"),
)
# Which llama.cpp adds as they are.
_EXACT = ("embeddings.position_embeddings", "embeddings.token_type_embeddings", "transformer.wpe")
_IN_LAYER = re.compile(r"(.*\.(?:layers?|h)\.(\d+)\.)(.*)")
_ROUTER = "ffn_gate_inp"  # small, and a token may go to another expert for a rounding
# Consumers of an FFN, whose rows are as long as the FFN is wide.
_CONSUMERS = ("mlp.down_proj", "output.dense", "mlp.c_proj", "mlp.fc2", "mlp.dense_4h_to_h")

# {tensor name: open file that holds it}.
Weights = dict[str, safe_open]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Rows:
    """Rows `start` to `stop` of a tensor in transformers."""

    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class Entry:
    """One tensor on its way into the file: rows of tensors in transformers, one below the other."""

    name: str
    rows: tuple[_Rows, ...]
    module: str  # as which module of transformers they are changed
    layer: int | None
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def source(self) -> str:
        """Name in transformers, for messages."""
        return self.rows[0].source


def model_tensors(config: PreTrainedConfig) -> tuple[Shapes, set[str]]:
    """{name: shape} of every tensor that the model must have, and the names of those tied to another; without memory."""
    with torch.device("meta"):
        writes = str((config.architectures or [""])[0]).endswith(("ForCausalLM", "LMHeadModel"))
        auto = AutoModelForCausalLM if writes else AutoModel
        model = auto.from_config(config)
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return own, model.state_dict().keys() - own.keys()


def named_as_saved(wanted: Shapes, row: Row) -> Shapes:
    """What a model must have, by the names of its files, which have a matrix for every expert."""
    found: Shapes = {}
    for name, sizes in wanted.items():
        prefix, middle, end = name.partition("mlp.experts.")
        if middle and row.experts:
            fused = [f"{middle}{part}" for part in (("gate_proj", "up_proj") if end == "gate_up_proj" else (end,))]
            single = (sizes[1] // len(fused), sizes[2])
            found |= {
                f"{prefix}{row.experts[part].format(number)}.weight": single for part in fused for number in range(sizes[0])
            }
        else:
            saved = next(((own, other) for own, other in row.saved_as.items() if own in name), ("", ""))
            found[name.replace(*saved)] = sizes
    return found


def open_weights(folder: Path, stack: ExitStack) -> Weights:
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


def check_weights(folder: Path, wanted: Shapes, unread: set[str], files: Weights) -> None:
    """Checks that a folder's weights are those that its config asks for, but for those that are not read.

    Raises:
        ValueError: a tensor is missing, of another shape, or too many (says which).
    """
    found = {name: tuple(file.get_slice(name).get_shape()) for name, file in files.items() if name not in unread}
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"The weights in `{folder}` lack `{name}`, which the config asks for. Save the model again.")
        if name not in wanted:
            raise ValueError(f"The weights in `{folder}` have `{name}`, which llama.cpp has no place for.")
        if found[name] != wanted[name]:
            raise ValueError(
                f"`{name}` in `{folder}` is {found[name]}, but its config says {wanted[name]}. Weights and config do not belong "
                "together: was a file changed by hand? Save the model again."
            )


def plan_tensors(
    place: Architecture, shape: Shape, wanted: Shapes, outtype: str, experts: Mapping[str, str] | None = None
) -> list[Entry]:
    """Every tensor of the file, in the model's order.

    Args:
        experts: see `Row.experts`.

    Raises:
        ValueError: a row does not fit the blocks of the type (says what to change).
    """
    names = gguf.get_tensor_name_map(place.arch, len(shape.layers))
    matrix, embedding, _ = OUTTYPES[outtype]
    entries, experts = [], experts or {}
    single = {whole: tuple(own.format(number) for number in range(shape.num_experts)) for whole, own in experts.items()}
    place = replace(place, joined={**place.joined, **single})
    for target, rows in _targets(place, shape, wanted):
        stored = names.get_name(target, try_suffixes=(".weight", ".bias"))
        assert stored is not None, target
        module, layer = target.rpartition(".")[0], _IN_LAYER.fullmatch(target)
        sizes = (sum(part.stop - part.start for part in rows), *wanted[rows[0].source][1:])
        if len(sizes) == 2 and module.endswith(place.transposed):
            sizes = sizes[::-1]
        if layer and module.removeprefix(layer[1]) in experts:  # all experts' matrices, one behind the other
            sizes = (len(rows), sizes[0] // len(rows), sizes[1])
        kind = F32 if len(sizes) == 1 or module in _EXACT or _ROUTER in stored else embedding if module in _BY_TOKEN else matrix
        entry = Entry(stored, rows, module, int(layer[2]) if layer else None, sizes, kind)
        _check_row(entry, outtype)
        entries.append(entry)
    return entries


def _targets(place: Architecture, shape: Shape, wanted: Shapes) -> Iterator[tuple[str, tuple[_Rows, ...]]]:
    """(name as of a tensor of transformers, where its rows come from) of every tensor, in the model's order."""
    joined = {module: (whole, parts) for whole, parts in place.joined.items() for module in parts}
    for name, sizes in wanted.items():
        found = _IN_LAYER.fullmatch(name)
        module, _, end = found[3].rpartition(".") if found else ("", "", "")
        if found and module in place.split:
            layer, start = shape.layers[int(found[2])], 0
            for part in place.split[module]:
                stop = start + _num_rows(part, shape, layer)
                yield f"{found[1]}{part}.{end}", (_Rows(name, start, stop),)
                start = stop
        elif found and module in joined:
            whole, parts = joined[module]
            if module == parts[0]:
                sources = [f"{found[1]}{part}.{end}" for part in parts]
                yield f"{found[1]}{whole}.{end}", tuple(_Rows(source, 0, wanted[source][0]) for source in sources)
        else:
            yield name, (_Rows(name, 0, sizes[0]),)
    if place.output == "own" and f"{_OUTPUT}.weight" not in wanted:
        embeddings = f"{_EMBEDDINGS}.weight"
        yield f"{_OUTPUT}.weight", (_Rows(embeddings, 0, wanted[embeddings][0]),)


def _num_rows(module: str, shape: Shape, layer: Layer) -> int:
    projection = module.rpartition(".")[2]
    if projection == "q_proj":
        return layer.heads * shape.head_dim
    return layer.kv_heads * shape.head_dim if projection in ("k_proj", "v_proj") else layer.width


def _check_row(entry: Entry, outtype: str) -> None:
    block = gguf.GGML_QUANT_SIZES[entry.kind][0]
    if entry.shape[-1] % block == 0:
        return
    remedy = "Export `--outtype f16`"
    if entry.module.endswith(_CONSUMERS) and "attention" not in entry.module:
        remedy = f"Prune with `--round_to {block}`, so that FFN widths are multiples of {block}, or export `--outtype f16`"
    raise ValueError(
        f"`{entry.source}` has rows of {entry.shape[-1]:,} values, which {outtype} stores in blocks of {block}: no multiple. "
        f"{remedy}."
    )


def write_tensors(
    writer: GGUFWriter,
    entries: list[Entry],
    files: Weights,
    place: Architecture,
    shape: Shape,
    extra: dict[str, np.ndarray],
) -> None:
    """Writes the whole file, tensors read and converted one by one; `extra` are tensors that no weight becomes."""
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
        for values in chain(extra.values(), (_converted(entry, files, place, shape) for entry in entries)):
            writer.write_tensor_data(values)
    finally:
        writer.close()


def _converted(entry: Entry, files: Weights, place: Architecture, shape: Shape) -> np.ndarray:
    """The bytes of one tensor."""
    parts = [files[part.source].get_slice(part.source)[part.start : part.stop] for part in entry.rows]
    tensor: Tensor = (torch.cat(parts) if len(parts) > 1 else parts[0]).float()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"`{entry.source}` holds values that are not finite. Such a model cannot be exported.")
    if tensor.ndim == 2 and entry.module.endswith(place.transposed):
        tensor = tensor.T
    ends = {end: (entry.module.endswith(end) or entry.source.endswith(end)) for end in place.changes}
    change = next((place.changes[end] for end, fits in ends.items() if fits), None)
    if change is not None:
        tensor = change(tensor, shape, None if entry.layer is None else shape.layers[entry.layer])
    if entry.kind == _F16 and float(tensor.abs().max()) > torch.finfo(torch.float16).max:
        raise ValueError(f"`{entry.source}` has values too large for f16. Export `--outtype bf16` or `f32`.")
    return gguf.quantize(tensor.contiguous().numpy(), entry.kind).view(np.uint8)
