"""What belongs in a model's folder, by name: what saving writes or carries over, and what a push sends."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ..planning import SCORES_FILE
from .saved_folder import CONFIG, PLAN, README, REPORT, STATE

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
# By the names of the tokenizers of transformers (`vocab_files_names`).
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab-src.json",
    "vocab-tgt.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "entity_vocab.json",
    "tekken.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "source.spm",
    "target.spm",
    "*.tiktoken",
)
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "audio_tokenizer_config.json")
# Of sentence-transformers, whose modules have folders of their own, like `1_Pooling`.
MODULES = "modules.json"
SENTENCE_TRANSFORMERS = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json")
_IN_MODULES = ("config.json", "*_config.json", "model.safetensors", *TOKENIZER)
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
_OURS = (README, PLAN, REPORT, STATE, SCORES_FILE, "report.html", "plots/*.png", "*.gguf", "*.onnx", "*.onnx.data", "*.onnx_data")

_WRITTEN = (
    CONFIG,
    "generation_config.json",
    *WEIGHTS,
    *TOKENIZER,
    *TEMPLATES,
    *PROCESSOR,
    *SENTENCE_TRANSFORMERS,
    *LICENCES,
    *_OURS,
)
# Looked for by transformers in any folder that it loads.
_LOADED = ("adapter_config.json", "*.index.json", "pytorch_model*.bin", "cria*.py")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path in a folder, with `/` between its parts, fits one of the patterns; `*` does not reach over a `/`."""
    parts = name.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        if len(wanted) == len(parts) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


def is_written(name: str) -> bool:
    """Whether a path in a model's folder has the name of a file that this package or `save_pretrained` writes."""
    folder, _, inner = name.partition("/")
    if inner and re.fullmatch(r"\d+_\w+", folder):
        return matches(inner.rpartition("/")[2], _IN_MODULES)
    return matches(name, _WRITTEN)


def is_model_file(name: str) -> bool:
    """Whether a name at the top of a folder is one that loading a model may look for, or that we write."""
    return is_written(name) or matches(name, _LOADED) or name in ("plots", "additional_chat_templates")
