"""The files of a model folder, checked before transformers reads them: a broken one is told by its name."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from ..utils.files import read_object, strange_content
from ..utils.types import Json
from ..utils.words import first_line, in_a_line, listed, shortened
from .weight_sets import differing_weight

_CONFIG = "config.json"
_AGAIN = "Get the whole checkpoint again."
_ITS_OWN = "Take the one that came with the weights."
# Numbers of things that there are: each is a whole number of at least 1 where a config has it.
_COUNTS: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_COUNTS += ("vocab_size", "max_position_embeddings", "dim", "hidden_dim", "n_layers", "n_heads", "num_channels")
_MAY_BE_NULL = ("num_key_value_heads", "head_dim")
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
_LARGEST_COUNT = 2**31 - 1


def check_files(folder: Path) -> None:
    """Checks that the config, the index and the headers of the weights in a model folder can be read.

    Raises:
        ValueError: one is broken, or says what cannot be; names the file and, in the config, the field.
    """
    config = read_object(folder / _CONFIG, _ITS_OWN)
    _check_generation(folder)
    number = _check_weights(folder)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _check_counts(part, folder / _CONFIG)
            _check_names(part, folder / _CONFIG)
    layers = config.get("num_hidden_layers")
    if number and isinstance(layers, int) and layers > number:
        raise ValueError(
            f"`num_hidden_layers` in `{folder / _CONFIG}` is {layers:,}, but the weight files hold {number:,} weights in all. "
            "Take the config that came with the weights."
        )


def _check_generation(folder: Path) -> None:
    """transformers goes without a broken one, and says nothing."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    read_object(file, _ITS_OWN)
    try:
        GenerationConfig.from_pretrained(folder)
    except Exception as error:  # its values are compared without a look at their types
        raise ValueError(f"`{file}` cannot be used: {shortened(in_a_line(error))}. {_ITS_OWN}") from None


def _check_counts(config: Json, file: Path) -> None:
    for name in _COUNTS:
        value = config.get(name, 1)
        if isinstance(value, (list, dict)) or (value is None and name in _MAY_BE_NULL):
            continue  # some families have one a stage; transformers tells where it is none of theirs
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_COUNT:
            raise ValueError(f"`{name}` in `{file}` is {value!r}; it must be a whole number of at least 1. {_ITS_OWN}")
    pairs = [("num_attention_heads", "num_key_value_heads")]
    if config.get("head_dim") is None and not str(config.get("model_type")).startswith("cria_"):
        pairs.append(("hidden_size", "num_attention_heads"))
    for name, by in pairs:
        if isinstance(config.get(name), int) and isinstance(config.get(by), int) and config[name] % config[by]:
            raise ValueError(f"`{name}` in `{file}` is {config[name]}, which `{by}` ({config[by]}) does not divide. {_ITS_OWN}")


def _check_names(config: Json, file: Path) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
    named: dict[str, tuple[object, Collection[str]]] = {
        "hidden_act": (config.get("hidden_act", "gelu"), ACT2FN),
        "rope_type": (kind, {"default"} | set(ROPE_INIT_FUNCTIONS)),
    }
    if config.get("problem_type") is not None:
        named["problem_type"] = (config["problem_type"], _PROBLEMS)
    for name, (value, known) in named.items():
        if isinstance(value, (str, int)) and value not in known:
            raise ValueError(
                f"`{name}` in `{file}` is `{value}`, which transformers does not know. Choose from {listed(sorted(known))}."
            )
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"`architectures` in `{file}` is no list of the names of classes. {_ITS_OWN}")
    if not isinstance(config.get("label2id") or {}, dict):
        raise ValueError(f"`label2id` in `{file}` is no table of labels and numbers. {_ITS_OWN}")
    pad, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(pad, int) and isinstance(vocabulary, int) and pad >= vocabulary:
        raise ValueError(f"`pad_token_id` in `{file}` is {pad}, and the last token is {vocabulary - 1}. Correct it.")


def _check_weights(folder: Path) -> int:
    """How many weights the files hold that transformers will load, by their headers."""
    safe, pickled = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    for whole, index in (safe, pickled):
        if (folder / whole).exists():
            _check_one_set(folder, whole, index)
        if files := _set_of(folder, whole, index):
            names = {file: _names_in(file) for file in files}
            _check_once(names)
            if (whole, index) == safe:
                _check_same(folder, files)
            return sum(map(len, names.values()))
    raise ValueError(_no_weights(folder))


def _check_once(names: Mapping[Path, Collection[str]]) -> None:
    """Tells of a weight in two shards: transformers takes the last, whatever the index says."""
    places: dict[str, Path] = {}
    for file, inside in names.items():
        for name in inside:
            if name in places:
                raise ValueError(f"`{name}` is in `{places[name]}` and in `{file.name}` beside it. {_AGAIN}")
            places[name] = file


def _set_of(folder: Path, whole: str, index: str) -> list[Path]:
    """The files of a set of weights, of which the whole file goes before shards."""
    if (folder / whole).exists():
        return [folder / whole]
    return _shards(folder / index) if (folder / index).exists() else []


def _check_same(folder: Path, read: list[Path]) -> None:
    """Tells of weights by torch.save beside others by safetensors, which alone are read: one of the two is older."""
    try:
        others = _set_of(folder, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    except ValueError:
        return  # an index whose files were not downloaded
    if (name := differing_weight(read, others)) is not None:
        raise ValueError(
            f"`{folder}` holds two sets of weights: `{read[0].name}`, which transformers reads, and `{others[0].name}`, in which "
            f"`{name}` is another. Take away the set that is not meant."
        )


def _check_one_set(folder: Path, whole: str, index: str) -> None:
    """Tells of a folder with shards beside the whole file: which of the two was saved last, its loading does not ask."""
    shards = folder.glob(whole.replace(".", "-*-of-*.", 1))
    if (folder / index).exists() and (shard := next(shards, None)):
        raise ValueError(
            f"`{folder}` holds two sets of weights: `{whole}`, and the shards of `{index}` (`{shard.name}`, ...). Take away the "
            "set that is not meant."
        )


def _no_weights(folder: Path) -> str:
    links = [name for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME) if (folder / name).is_symlink()]
    if links:
        return f"`{folder / links[0]}` is a link to a file that does not exist. {_AGAIN}"
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf:
        return f"`{folder}` has no `{SAFE_WEIGHTS_NAME}`, but `{gguf[0]}`. Set `gguf_file` to that."
    return f"`{folder}` has no weights (`{SAFE_WEIGHTS_NAME}` or `{WEIGHTS_NAME}`). {_AGAIN}"


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all inside its folder."""
    content = read_object(index, _AGAIN)
    table = content.get("weight_map")
    if not isinstance(table, dict) or not table or not isinstance(content.get("metadata"), dict):
        raise ValueError(f"`{index}` has no tables `metadata` and `weight_map` (of weights and their files). {_AGAIN}")
    shards = []
    for name in dict.fromkeys(map(str, table.values())):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise ValueError(f"`{index}` names the file `{name}`, which is not in its folder. {_AGAIN}")
        shards.append(shard)
    return shards


def _names_in(file: Path) -> Collection[str]:
    if not file.is_file():
        raise ValueError(f"`{file}` is not a file. {_AGAIN}")
    if strange := strange_content(file):
        raise ValueError(f"`{file}` {strange}")
    if file.suffix != ".safetensors":
        return _pickled_names(file)
    try:
        with safe_open(file, "pt") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"`{file}` is no whole safetensors file ({error}). {_AGAIN}") from None


def _pickled_names(file: Path) -> Collection[str]:
    try:  # only the table of contents is read, but for files from before torch 1.6
        found = torch.load(file, map_location="meta", mmap=zipfile.is_zipfile(file), weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        reason = first_line(error)
        raise ValueError(
            f"`{file}` is broken, or holds more than tensors and is not read, because a pickle can run any code "
            f"({shortened(reason)}). {_AGAIN}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"`{file}` holds a {type(found).__name__}, not weights by their names. {_AGAIN}")
    return [str(name) for name in found]


def check_reached(name: str | Path, error: Exception) -> None:
    """Tells of a name that is no folder while the Hub is out of reach, where that is why `error` was raised.

    Raises:
        OSError: see above.
    """
    if not Path(name).exists() and "connect" in str(error):
        raise OSError(f"`{name}` is no folder here, and the Hub cannot be reached. Give a folder, or connect.") from None


def read_config(name: str | Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model, by `AutoConfig`.

    Raises:
        ValueError: transformers cannot read it, or a value in it is of another type; names the file.
        OSError: there is none, or the Hub cannot be reached.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except OSError as error:
        check_reached(name, error)
        raise OSError(f"`{name}` has no config that can be read: {in_a_line(error)}.") from None
    except Exception as error:  # the classes of configs check little and trip over the rest
        reason = in_a_line(error)
        raise ValueError(f"`{Path(name) / _CONFIG}` cannot be used: {shortened(reason)}. {_ITS_OWN}") from None
