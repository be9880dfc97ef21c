"""Bad inputs in the folder of a model: weights, index, config, tokenizer and the files beside them."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from stage import DAMAGES, JSON_DAMAGES, Fault, Stage, change, cut_at, drop_json, set_json

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
Act = Callable[[Path], None]


def in_model(name: str, act: Act, *says: str, model: str = "llama", harmless: bool = False, **flags: Any) -> Fault:
    """A copy of a model with something done to its folder, which is then pruned."""

    def make(stage: Stage) -> list[str]:
        folder = stage.copy(model)
        act(folder)
        given = {key: value(stage) if callable(value) else value for key, value in flags.items()}
        return stage.words("prune", model_name_or_path=folder, **given)

    return Fault(name, make, says, harmless)


def faults() -> Iterator[Fault]:
    yield from _weights()
    yield from _header()
    yield from _tensors()
    yield from _shards()
    yield from _config_files()
    yield from _config_values()
    yield from _tokenizers()
    yield from _others()


def _weights() -> Iterator[Fault]:
    for how, damage in DAMAGES.items():
        yield in_model(f"weights: {how}", lambda folder, damage=damage: change(folder / WEIGHTS, damage), WEIGHTS)
    for size in (1, 7, 8, 9, 200):
        yield in_model(f"weights: {size} bytes", lambda folder, size=size: change(folder / WEIGHTS, lambda b: b[:size]), WEIGHTS)
    yield in_model("weights: absent", lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors")
    yield in_model("weights: a folder", _as_folder, "model")
    yield in_model("weights: a link to nothing", _as_dead_link, "model.safetensors")
    yield in_model(
        "weights: longer than the header says", lambda folder: change(folder / WEIGHTS, lambda b: b + b"x" * 64), WEIGHTS
    )

    def as_pickle(folder: Path, content: bytes) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    for how, damage in DAMAGES.items():
        yield in_model(
            f"pickle: {how}", lambda folder, damage=damage: as_pickle(folder, damage(_pickled(folder))), "pytorch_model.bin"
        )
    yield in_model("pickle: runs code", lambda folder: as_pickle(folder, pickle.dumps(_Runs())), "pytorch_model.bin")
    yield in_model("pickle: a whole model", lambda folder: as_pickle(folder, pickle.dumps(["a"])), "pytorch_model.bin")
    yield in_model("weights: only a GGUF", lambda folder: (folder / WEIGHTS).rename(folder / "model.gguf"), "gguf")


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/cria_was_here",)


def _pickled(folder: Path) -> bytes:
    torch.save(load_file(folder / WEIGHTS), folder / "x.bin")
    content = (folder / "x.bin").read_bytes()
    (folder / "x.bin").unlink()
    return content


def _as_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def _as_dead_link(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "blobs" / "absent")


def _header() -> Iterator[Fault]:
    """A safetensors file is the header's length (8 bytes), a header of JSON, and the bytes of the tensors."""

    def rewritten(edit: Callable[[dict[str, Any]], Any]) -> Act:
        def damage(content: bytes) -> bytes:
            size = struct.unpack("<Q", content[:8])[0]
            header = json.loads(content[8 : 8 + size])
            text = edit(header)
            text = json.dumps(header if text is None else text).encode() if not isinstance(text, bytes) else text
            return struct.pack("<Q", len(text)) + text + content[8 + size :]

        return lambda folder: change(folder / WEIGHTS, damage)

    first = "model.layers.0.mlp.up_proj.weight"
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "not JSON": lambda header: b"{x",
        "a list": lambda header: [],
        "empty": lambda header: {},
        "another type of number": lambda header: header[first].update(dtype="F33"),
        "a type of other size": lambda header: header[first].update(dtype="F64"),
        "a negative size": lambda header: header[first].update(shape=[-24, -32]),
        "another shape": lambda header: header[first].update(shape=[24, 33]),
        "a huge shape": lambda header: header[first].update(shape=[2**40, 2**40]),
        "offsets past the end": lambda header: header[first].update(data_offsets=[0, 10**12]),
        "offsets that overlap": lambda header: header[first].update(data_offsets=[0, 3072]),
        "no offsets": lambda header: header[first].pop("data_offsets") and None,
        "a tensor that is a list": lambda header: header.update({first: [1]}),
        "latin-1 in it": lambda header: b'{"\xe9": {}}',
    }
    for how, edit in edits.items():
        yield in_model(f"header of weights: {how}", rewritten(edit), WEIGHTS)
    for how, length in {"zero": 0, "of a terabyte": 2**40, "of all ones": 2**64 - 1, "one too short": None}.items():

        def damage(content: bytes, length: int | None = length) -> bytes:
            real = struct.unpack("<Q", content[:8])[0]
            return struct.pack("<Q", real - 1 if length is None else length) + content[8:]

        yield in_model(
            f"header of weights: length {how}", lambda folder, damage=damage: change(folder / WEIGHTS, damage), WEIGHTS
        )


def _tensors() -> Iterator[Fault]:
    def edited(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]) -> Act:
        def act(folder: Path) -> None:
            state = load_file(folder / WEIGHTS)
            edited = edit(state)
            save_file(edited if isinstance(edited, dict) else state, folder / WEIGHTS, metadata={"format": "pt"})

        return act

    layer = "model.layers.1."
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", f"{layer}mlp.up_proj.weight"):
        yield in_model(f"tensor absent: {name}", edited(lambda state, name=name: state.pop(name)), name)
    for part in ("mlp.gate_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "input_layernorm"):
        name = f"{layer}{part}.weight"
        yield in_model(f"tensor absent: {name}", edited(lambda state, name=name: state.pop(name)), name)
        yield in_model(
            f"tensor of another shape: {name}",
            edited(lambda state, name=name: state.update({name: state[name][:-4].contiguous()})),
            name,
        )
    yield in_model(
        "tensors: a layer absent",
        edited(lambda state: {key: value for key, value in state.items() if not key.startswith(layer)}),
        f"{layer}",
    )
    for prefix in ("module.", "_orig_mod.", "base_model.model.", "transformer."):
        yield in_model(
            f"tensors: all begin with {prefix}",
            edited(lambda state, prefix=prefix: {f"{prefix}{key}": value for key, value in state.items()}),
            prefix,
        )
    yield in_model("tensors: none", edited(lambda state: {"nothing": torch.zeros(1)}), CONFIG)
    name = f"{layer}mlp.up_proj.weight"
    yield in_model(
        "tensors: a weight too many", edited(lambda state: state.update({f"{layer}mlp.extra.weight": torch.zeros(2)})), "extra"
    )
    for how, value in {"nan": torch.nan, "inf": torch.inf}.items():
        yield in_model(
            f"tensors: {how}",
            edited(lambda state, value=value: state[name].fill_(value)),
        )
        yield in_model(
            f"tensors: one {how}",
            edited(lambda state, value=value: state[name].view(-1)[:1].fill_(value)),
        )
    yield in_model("tensors: integers", edited(lambda state: state.update({name: state[name].to(torch.int32)})), harmless=True)


def _shards() -> Iterator[Fault]:
    def index(edit: Callable[[dict[str, Any]], Any]) -> Act:
        def act(folder: Path) -> None:
            content = json.loads((folder / INDEX).read_text())
            edited = edit(content)
            (folder / INDEX).write_text(json.dumps(content if edited is None else edited))

        return act

    def shard(folder: Path) -> Path:
        return sorted(folder.glob("model-*.safetensors"))[1]

    for how, damage in JSON_DAMAGES.items():
        yield in_model(f"index: {how}", lambda folder, damage=damage: change(folder / INDEX, damage), INDEX, model="sharded")
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "no map": lambda content: content.pop("weight_map") and None,
        "an empty map": lambda content: content.update(weight_map={}),
        "a map that is a list": lambda content: content.update(weight_map=["a"]),
        "a map that is null": lambda content: content.update(weight_map=None),
        "names that are numbers": lambda content: content.update(weight_map=dict.fromkeys(content["weight_map"], 3)),
        "names that are null": lambda content: content.update(weight_map=dict.fromkeys(content["weight_map"], None)),
        "names that are lists": lambda content: content.update(weight_map={key: ["a"] for key in content["weight_map"]}),
        "a shard that is not there": lambda content: content["weight_map"].update({"model.norm.weight": "model-9.safetensors"}),
        "a shard outside": lambda content: content["weight_map"].update({"model.norm.weight": "../text.txt"}),
        "a shard by an absolute path": lambda content: content["weight_map"].update({"model.norm.weight": "/etc/passwd"}),
        "a shard that is no safetensors": lambda content: content["weight_map"].update({"model.norm.weight": "config.json"}),
        "a shard with an empty name": lambda content: content["weight_map"].update({"model.norm.weight": ""}),
        "a shard that is the folder": lambda content: content["weight_map"].update({"model.norm.weight": "."}),
    }
    for how, edit in edits.items():
        place = "config.json" if how.endswith("no safetensors") else INDEX
        yield in_model(f"index: {how}", index(edit), place, model="sharded")
    yield in_model("index: no metadata", index(lambda content: content.pop("metadata") and None), model="sharded")
    for how, damage in DAMAGES.items():
        yield in_model(f"shard: {how}", lambda folder, damage=damage: change(shard(folder), damage), "model-", model="sharded")
    yield in_model("shard: absent", lambda folder: shard(folder).unlink(), "model-", model="sharded")
    yield in_model(
        "shard: another one's content",
        lambda folder: shard(folder).write_bytes(sorted(folder.glob("model-*.safetensors"))[0].read_bytes()),
        model="sharded",
    )


def _config_files() -> Iterator[Fault]:
    for how, damage in JSON_DAMAGES.items():
        yield in_model(f"config: {how}", lambda folder, damage=damage: change(folder / CONFIG, damage), CONFIG)
    yield in_model("config: absent", lambda folder: (folder / CONFIG).unlink(), CONFIG)
    yield in_model("config: an empty table", lambda folder: (folder / CONFIG).write_text("{}"), CONFIG)

    def folder_instead(folder: Path) -> None:
        (folder / CONFIG).unlink()
        (folder / CONFIG).mkdir()

    yield in_model("config: a folder", folder_instead, CONFIG)


# {field: values that cannot be}
SIZES = [-1, 0, 0.5, "32", None, [], {}, True, 2**40]
CONFIG_VALUES: dict[str, list[Any]] = {
    "hidden_size": [*SIZES, 30, 33, 64],
    "intermediate_size": [*SIZES, 25],
    "num_hidden_layers": [-1, 0, 0.5, "3", None, [], {}, True, 4, 1000, 10**7],
    "num_attention_heads": [*SIZES, 3, 7, 16],
    "num_key_value_heads": [-1, 0, 0.5, "4", [], {}, 3, 8, 16],
    "head_dim": [-1, 0, 0.5, "4", [], 3, 5, 8, 2**40],
    "vocab_size": [*SIZES, 95, 97],
    "max_position_embeddings": [-1, 0, 0.5, "128", None, [], {}, 16],
    "hidden_act": ["selu2", 3, None, [], {}],
    "rms_norm_eps": ["tiny", None, [], {}],
    "rope_parameters": [3, "linear", [], {"rope_type": "spiral", "rope_theta": 1e4}, {"rope_type": "linear"}, {"rope_type": 3},
                        {"rope_type": "default", "rope_theta": "big"}, {"rope_type": "default", "rope_theta": 0},
                        {"rope_type": "yarn", "rope_theta": 1e4}],
    "attention_bias": ["yes", 3, [], {}],
    "mlp_bias": ["yes", [], {}],
    "attention_dropout": ["much", [], {}],
    "tie_word_embeddings": ["maybe", [], {}],
    "initializer_range": ["wide", [], {}],
    "dtype": ["float31", 3, [], "int8"],
    "architectures": [[], None, "LlamaForCausalLM", ["MammothForCausalLM"], [3], {}, ["LlamaModel"], ["BertForMaskedLM"]],
    "model_type": ["lama", "mammoth", "marian", "gpt2", "", None, 3, [], {}, "bert", "vit"],
    "pad_token_id": ["zero", [], {}, 200],
    "eos_token_id": ["end", {}, ["a"]],
    "bos_token_id": ["start", {}, []],
    "use_cache": ["maybe"],
    "quantization_config": [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "fp8"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "mxfp4"},
        {"quant_method": "hqq"},
        {"quant_method": "quanto"},
        {"quant_method": "torchao"},
        {"quant_method": "eetq"},
        {"quant_method": "aqlm"},
        {"quant_method": "spiral"},
        {"bits": 4},
        "gptq",
        3,
        [],
    ],
    "auto_map": [3],
}  # fmt: skip


# What the line names where it is not the file alone.
PLACES = {field: (CONFIG, field) for field in ("intermediate_size", "num_hidden_layers", "hidden_act", "pad_token_id")}
PLACES |= {"max_position_embeddings": (), "model_type": (), "tie_word_embeddings": ()}


def _config_values() -> Iterator[Fault]:
    for field, values in CONFIG_VALUES.items():
        for value in values:
            yield in_model(
                f"config: {field} = {json.dumps(value)}",
                lambda folder, field=field, value=value: set_json(folder / CONFIG, field, to=value),
                *(
                    ()
                    if (field, value) == ("rope_parameters", {"rope_type": "default", "rope_theta": 0})
                    # A width that a config may have: the weights' own check names them beside the config.
                    else (CONFIG, "down_proj")
                    if (field, value) == ("intermediate_size", 25)
                    else PLACES.get(field, (CONFIG,))
                ),
                # The class is then told by the names of the weights.
                harmless=field == "architectures" and value in ([], None, {}, ["MammothForCausalLM"]),
            )
    for field in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "num_hidden_layers"):
        yield in_model(f"config without {field}", lambda folder, field=field: drop_json(folder / CONFIG, field))
    yield in_model("config without model_type", lambda folder: drop_json(folder / CONFIG, "model_type"), "model_type")
    yield in_model("config without architectures", lambda folder: drop_json(folder / CONFIG, "architectures"), harmless=True)


def _tokenizers() -> Iterator[Fault]:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        for how, damage in JSON_DAMAGES.items():
            yield in_model(f"{file}: {how}", lambda folder, file=file, damage=damage: change(folder / file, damage), "tokenizer")
    yield in_model("tokenizer.json: absent", lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer")
    yield in_model("tokenizer.json: a tenth", lambda folder: change(folder / "tokenizer.json", cut_at(0.1)), "tokenizer")
    values: dict[tuple[Any, ...], list[Any]] = {
        ("model",): [None, [], {}, "BPE", {"type": "Spiral"}],
        ("model", "vocab"): [None, [], {}, "w3", {"w3": "three"}, {"w3": -1}],
        ("model", "unk_token"): [3, [], "<none>"],
        ("pre_tokenizer",): ["whitespace", [], {"type": "Spiral"}],
        ("normalizer",): [3, {"type": "Spiral"}],
        ("added_tokens",): [{}, "x", [3], [{"id": "a"}]],
        ("version",): [3, "9.0"],
    }
    for names, options in values.items():
        for value in options:
            yield in_model(
                f"tokenizer.json: {'.'.join(map(str, names))} = {json.dumps(value)}",
                lambda folder, names=names, value=value: set_json(folder / "tokenizer.json", *names, to=value),
                "tokenizer",
            )
    settings: dict[str, list[Any]] = {
        "tokenizer_class": [3, []],
        "model_max_length": ["long", []],
        "pad_token": [3, []],
        "eos_token": [3, {"content": 3}],
        "padding_side": ["up", 3],
        "added_tokens_decoder": [3, {"x": {}}, []],
    }
    for name, options in settings.items():
        for value in options:
            yield in_model(
                f"tokenizer_config.json: {name} = {json.dumps(value)}",
                lambda folder, name=name, value=value: set_json(folder / "tokenizer_config.json", name, to=value),
                "tokenizer",
            )


def _others() -> Iterator[Fault]:
    def write(file: str, content: str) -> Act:
        return lambda folder: (folder / file).write_text(content) and None

    for how, content in {
        "half": '{"max_length": ',
        "a list": "[]",
        "a text": '"x"',
        "text for a number": '{"max_new_tokens": "many"}',
    }.items():
        yield in_model(f"generation_config.json: {how}", write("generation_config.json", content), "generation_config.json")
    ids: dict[str, list[Any]] = {
        "id2label": [3, "even", {"0": "even"}, {"zero": "even", "one": "odd"}, ["even", "odd"]],
        "label2id": [3, "even", ["even"]],
        "num_labels": [-1, "two", 3],
        "problem_type": ["guessing", 3],
        "hidden_act": ["spiral"],
        "num_attention_heads": [5, 0, -8],
        "type_vocab_size": [-1, "two"],
    }
    for name, options in ids.items():
        for value in options:
            yield in_model(
                f"config of a classifier: {name} = {json.dumps(value)}",
                lambda folder, name=name, value=value: set_json(folder / CONFIG, name, to=value),
                CONFIG,
                model="bert",
                label_column="label",
                units="ffn",
                calibration_file=lambda stage: stage.sources / "rows.jsonl",
            )
