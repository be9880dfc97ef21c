"""Carries over what a folder holds beside its model: modules of sentence-transformers, templates, token files, licences."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors.torch import save_file
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..publishing.contents import LICENCES, MODULES, PROCESSOR, SENTENCE_TRANSFORMERS, TEMPLATES, TOKENIZER, WEIGHTS, matches
from ..publishing.saved_folder import CONFIG
from ..utils.words import named

logger = logging.get_logger(__name__)

_SECONDS = 5.0  # that the Hub may take to answer
_LARGEST_JSON = 2**20
# What a pruned model has anew or has no use for: weights in any format, cards, what training left, code of another class.
_LEFT = (
    *WEIGHTS,
    *(
        "*.safetensors",
        "*.bin",
        "*.pt",
        "*.pth",
        "*.ckpt",
        "*.h5",
        "*.msgpack",
        "*.ot",
        "*.npz",
        "*.gguf",
        "*.pkl",
        "*.index.json",
    ),
    *("*.onnx", "*.onnx.data", "*.onnx_data", "onnx", "openvino", "coreml", "original", "*.tflite", "*.mlmodel", "*.mlpackage"),
    *(
        ".*",
        "__init__.py",
        "README.md",
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "quantization_config.json",
        "plots",
        "runs",
        "logs",
    ),
    *(
        "checkpoint-*",
        "trainer_state.json",
        "*results.json",
        "__pycache__",
        "events.out.tfevents*",
        "report.html",
        "pruning_*.json",
    ),
    *("pruner_state.json", "modeling_*.py", "configuration_*.py", "cria_*.py", "narrowing.py"),
)
_KNOWN = (*SENTENCE_TRANSFORMERS, *TEMPLATES, *TOKENIZER, *PROCESSOR, *LICENCES)
# A tokenizer that is saved says these in its own files.
_SAID_ANEW = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Source:
    """The folder that a model came from, here or on the Hub.

    Attributes:
        names: what lies in it, given the folders to look into: files by their paths with `/`, other folders by their names.
        file: a file of it by its path, fetched where it is not here. Raises OSError.
    """

    names: Callable[[Collection[str]], list[str]]
    file: Callable[[str], Path]


def carry_over(name_or_path: str | None, commit: str | None, folder: Path) -> None:
    """Copies into a saved folder what the model's own folder holds beside it, and names what it does not know.

    What lies in the saved folder already stays. Of a model on the Hub, files that were not fetched yet are; without a
    connection those at hand must do.

    Args:
        name_or_path: the model's `config._name_or_path`.
        commit: of the Hub, as in `config._commit_hash`.
    """
    source = _source(name_or_path, commit) if name_or_path else None
    if source is None:
        return
    modules = _read_json(source, MODULES)
    entries = [entry for entry in modules if isinstance(entry, dict)] if isinstance(modules, list) else []
    inner = {part for entry in entries if (part := _top_folder(entry.get("path")))}
    code = {f"{str(entry.get('type')).partition('.')[0]}.py" for entry in entries}
    left = _left(source, folder)
    unknown = []
    for name in source.names({*inner, "additional_chat_templates"}):
        top = name.partition("/")[0]
        if (folder / name).exists() or (top not in inner and matches(top, left)):
            continue
        known = top in inner or name in code or matches(name, _KNOWN)
        if not (known and _copy(source, name, folder / name)):
            unknown.append(name)
    for part in inner:
        (folder / part).mkdir(exist_ok=True)  # a module without options may have an empty folder
        _without_pickle(folder / part)
    if unknown:
        logger.warning(
            f"Not carried over from `{name_or_path}`, as no file that is known: {named(unknown)}. Copy what the model needs."
        )


def _source(name_or_path: str, commit: str | None) -> Source | None:
    """None for what is neither a folder nor was loaded from the Hub."""
    if Path(name_or_path).is_dir():
        return _local(Path(name_or_path))
    try:
        config = try_to_load_from_cache(name_or_path, CONFIG, revision=commit)
    except HFValidationError:
        return None
    if not isinstance(config, str):
        return None
    with suppress(OSError, HTTPError):  # no network: what is at hand must do
        files = [part.rfilename for part in model_info(name_or_path, revision=commit, timeout=_SECONDS).siblings or ()]

        def names(inner: Collection[str]) -> list[str]:
            return list(dict.fromkeys(part if _top(part) in inner else _top(part) for part in files))

        return Source(names, lambda part: Path(hf_hub_download(name_or_path, part, revision=commit)))
    return _local(Path(config).parent)


def _local(path: Path) -> Source:
    root = path.resolve()
    # In the Hub's cache a file is a link to where its bytes lie.
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root

    def names(inner: Collection[str]) -> list[str]:
        found: list[str] = []
        for entry in sorted(root.iterdir()):
            parts = sorted(entry.rglob("*")) if entry.name in inner and entry.is_dir() else [entry]
            found += [part.relative_to(root).as_posix() for part in parts if part == entry or not part.is_dir()]
        return found

    def file(name: str) -> Path:
        target = (root / name).resolve()
        if not target.is_file() or not (target.is_relative_to(root) or target.is_relative_to(blobs)):
            raise FileNotFoundError(f"`{name}` is no file of its folder")
        return target

    return Source(names, file)


def _top(name: str) -> str:
    return name.partition("/")[0]


def _top_folder(path: str | None) -> str:
    """The folder of a module, by its `path`; empty for the model's own and for what is no path inside."""
    parts = PurePosixPath(path).parts if isinstance(path, str) else ()
    return parts[0] if parts and ".." not in parts and not parts[0].startswith(("/", ".")) else ""


def _left(source: Source, folder: Path) -> tuple[str, ...]:
    """Names of what a result has anew or cannot use."""
    left: tuple[str, ...] = _LEFT
    if (folder / "tokenizer_config.json").exists():
        left = (*left, *_SAID_ANEW)
    if _reads_images(_read_json(source, CONFIG)) and not _reads_images(json.loads((folder / CONFIG).read_text(encoding="utf-8"))):
        left = (*left, *PROCESSOR)  # its text part alone was pruned
    return left


def _reads_images(config: PreTrainedConfig) -> bool:
    return isinstance(config, dict) and bool({"vision_config", "audio_config"} & set(config))


def _read_json(source: Source, name: str) -> Any:
    """What a JSON file of the source holds; None where there is none that can be read."""
    try:
        file = source.file(name)
        return json.loads(file.read_text(encoding="utf-8")) if file.stat().st_size <= _LARGEST_JSON else None
    except (OSError, HTTPError, ValueError, RecursionError):
        return None


def _copy(source: Source, name: str, target: Path) -> bool:
    try:
        file = source.file(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    except (OSError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True


def _without_pickle(module: Path) -> None:
    """Writes the weights of a module as safetensors, where it has them as a pickle, which no one should have to trust."""
    pickled, safe = module / "pytorch_model.bin", module / "model.safetensors"
    if pickled.is_file() and not safe.exists():
        with suppress(RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
            weights = torch.load(pickled, map_location="cpu", weights_only=True)
            save_file({name: value.contiguous() for name, value in weights.items()}, safe)
            pickled.unlink()
