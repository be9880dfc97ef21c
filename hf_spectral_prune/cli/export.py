"""`cria export`: writes a model folder as GGUF or ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from ..utils.words import did_you_mean, install_words
from .parsing import parse, take_folder


@dataclass
class GGUFArguments:
    """What to write for llama.cpp."""

    outtype: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = field(
        default="f16", metadata={"help": "Type of the matrices; q8_0 and q4_0 need FFN widths that are multiples of 32."}
    )
    output_file: str | None = field(default=None, metadata={"help": "File to write; by default NAME-OUTTYPE.gguf in the folder."})


@dataclass
class ONNXArguments:
    """What to write for ONNX runtimes."""

    output_file: str | None = field(default=None, metadata={"help": "File to write; by default model.onnx in the folder."})
    use_cache: bool = field(
        default=False, metadata={"help": "Take and return the key/value cache of a causal language model, to generate text fast."}
    )


def _gguf(argv: Sequence[str]) -> None:
    """Exports a model folder to one GGUF file for llama.cpp, including the tokenizer, if llama.cpp has its family."""
    folder, words = take_folder("export gguf", argv)
    (options,) = parse([GGUFArguments], "export gguf FOLDER", _gguf.__doc__ or "", words)
    file = _module("gguf").export_gguf(folder, options.output_file, options.outtype)
    print(f"Wrote {file} ({file.stat().st_size / 2**20:,.1f} MiB)")


def _onnx(argv: Sequence[str]) -> None:
    """Exports a model folder to ONNX and keeps the file only if onnxruntime gives the same outputs as PyTorch."""
    folder, words = take_folder("export onnx", argv)
    (options,) = parse([ONNXArguments], "export onnx FOLDER", _onnx.__doc__ or "", words)
    result = _module("onnx").export_onnx(folder, options.output_file, use_cache=options.use_cache)
    print(
        f"Wrote {result.file}. Largest difference between onnxruntime and PyTorch: {result.max_abs_diff:.3g} "
        f"(allowed {result.allowed:.3g}), on batches of {', '.join(map(str, result.shapes))}."
    )


FORMATS = {"gguf": _gguf, "onnx": _onnx}


def _module(name: str) -> Any:
    try:
        return import_module(f"hf_spectral_prune.publishing.export.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`cria export {name}` needs the package `{error.name}`. To install it, {install_words(name)}."
        ) from None


def main(argv: Sequence[str]) -> None:
    """Calls the exporter that the first word names."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: cria export FORMAT FOLDER [--flags]\n")
        for name, export in FORMATS.items():
            print(f"  {name:6}{export.__doc__}")
        print("\n`cria export FORMAT --help` explains every flag.")
        if not words:
            raise ValueError("There is no format. Write `cria export gguf FOLDER` or `cria export onnx FOLDER`.")
        return
    if words[0] not in FORMATS:
        near = did_you_mean(words[0], FORMATS, otherwise=" Take gguf or onnx.")
        raise ValueError(f"`{words[0]}` is no format to export to.{near}")
    FORMATS[words[0]](words[1:])
