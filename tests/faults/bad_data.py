"""Bad inputs among what a model is calibrated and measured on: texts, tables, labels, images, tensors and GGUF files."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from stage import DAMAGES, NESTED, PAGE, POINTER, Fault, Stage, change, cut_at


def faults() -> Iterator[Fault]:
    yield from _texts()
    yield from _tables()
    yield from _labels()
    yield from _images()
    yield from _tensors()
    yield from _gguf()


def on_file(
    name: str, file: str, content: bytes | Callable[[bytes], bytes], *says: str, harmless: bool = False, **more: Any
) -> Fault:
    """Calibration on a file: its content, or what is done to the sound one of that name."""

    def make(stage: Stage) -> list[str]:
        path = stage.folder / file
        if callable(content):
            path.write_bytes(content((stage.sources / file).read_bytes()))
        else:
            path.write_bytes(content)
        given = {key: value(stage) if callable(value) else value for key, value in more.items()}
        return stage.words("prune", calibration_file=path, **given)

    return Fault(f"{file}: {name}", make, says or (file,), harmless)


def _texts() -> Iterator[Fault]:
    contents = {
        "empty": b"",
        "blank": b" \n\t\n",
        "only a byte-order mark": b"\xef\xbb\xbf",
        "a git-lfs pointer": POINTER,
        "latin-1": "café crème ".encode("latin-1") * 100,
        "UTF-16": ("w3 w4 " * 500).encode("utf-16"),
        "noise": np.random.default_rng(1).bytes(4000),
        "zeros": bytes(4000),
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "half a character at its end": "w3 w4 é".encode() * 300 + b"\xc3",
    }
    for name, content in contents.items():
        yield on_file(name, "text.txt", content)
    yield on_file("too short", "text.txt", b"w3 w4 w5", "max_seq_length")
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        yield on_file(f"{share:.0%} of it", "text.txt.gz", cut_at(share))
        yield on_file(f"{share:.0%} of it", "rows.jsonl.gz", cut_at(share))
        yield on_file(f"{share:.0%} of it", "rows.csv.gz", cut_at(share))
    for file in ("text.txt.gz", "rows.jsonl.gz"):
        for name, damage in DAMAGES.items():
            if name in ("empty", "a git-lfs pointer", "a page of HTML", "zeros", "noise"):
                yield on_file(name, file, damage)
        yield on_file("not gzipped", file, b"w3 w4 w5 " * 300)
        yield on_file("a wrong checksum", file, lambda content: content[:-8] + b"\x00" * 8)
        yield on_file("gzipped twice", file, gzip.compress)
    for suffix in ("pdf", "docx", "xlsx", "bin", "zip", "txt.bz2", "txt.zst"):
        yield on_file("of another type", f"text.{suffix}", b"w3 w4 " * 200)


def _tables() -> Iterator[Fault]:
    for file in ("rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.parquet"):
        for name in ("empty", "a git-lfs pointer", "a page of HTML", "noise", "zeros"):
            yield on_file(name, file, DAMAGES[name])
    for name, damage in DAMAGES.items():
        if name not in ("empty", "a git-lfs pointer", "a page of HTML", "noise", "zeros"):
            yield on_file(name, "rows.parquet", damage)
    broken = {
        "half a line": b'{"text": "w3 w4"}\n{"text": "w',
        "a list a line": b'["w3"]\n["w4"]\n',
        "a number a line": b"3\n4\n",
        "a text a line": b'"w3"\n"w4"\n',
        "another type in a later line": b'{"text": "w3"}\n{"text": {"a": 1}}\n',
        "a trailing comma": b'{"text": "w3",}\n',
        "a Python dict": b"{'text': 'w3'}\n",
        "nested 100,000 deep": b'{"text": ' + NESTED + b"}\n",
        "NaN": b'{"text": NaN}\n',
        "no text column": b'{"a": 1}\n{"a": 2}\n',
        "two text columns": b'{"a": "w3", "b": "w4"}\n',
        "only nulls": b'{"text": null}\n{"text": null}\n',
        "only blanks": b'{"text": ""}\n{"text": " "}\n',
        "latin-1": b'{"text": "caf\xe9"}\n',
        "a list of texts": b'{"text": ["w3", "w4"]}\n',
        "token ids nested": b'{"input_ids": [[3, 4], [5, 6]]}\n',
        "token ids as text": b'{"input_ids": "3 4 5"}\n',
        "empty token ids": b'{"input_ids": []}\n',
    }
    says = {
        "no text column",
        "two text columns",
        "a list of texts",
        "only nulls",
        "only blanks",
        "NaN",
        "another type in a later line",
    }
    says |= {name for name in broken if "token ids" in name}
    for name, content in broken.items():
        yield on_file(name, "rows.jsonl", content, "" if name in says else "rows.jsonl")
    csvs = {
        "no header": b"1,2\n3,4\n",
        "more fields than names": b"text,label\nw3,even,x,y\nw4,odd\n",
        "a quote open": b'text,label\n"w3,even\nw4,odd\n',
        "a null byte": b"text,label\nw\x003,even\n",
        "only a header": b"text,label\n",
        "only numbers": b"a,b\n1,2\n3,4\n",
    }
    for name, content in csvs.items():
        yield on_file(name, "rows.csv", content, "")
    yield on_file("another column named", "rows.csv", lambda content: content, "txt", text_column="txt")
    yield on_file("a column of numbers named", "rows.jsonl", b'{"text": "w3", "n": 1}\n', "`text_column`", text_column="n")


def labelled(name: str, content: str, *says: str, **more: Any) -> Fault:
    given = {"label_column": "label", "model_name_or_path": lambda stage: stage.sources / "bert", "units": "ffn"} | more
    return on_file(f"labels: {name}", "rows.csv", content.encode(), *says, **given)


def _labels() -> Iterator[Fault]:
    def rows(*labels: str) -> str:
        return "text,label\n" + "".join(f"w3 w{4 + row},{label}\n" for row, label in enumerate(labels * 10))

    cases = {
        "unknown": rows("even", "prime"),
        "missing": rows("even", ""),
        "negative": rows("0", "-1"),
        "too large": rows("0", "2"),
        "fractions": rows("0.5", "1.5"),
        "words for numbers": rows("zero", "one"),
        "of another case and unknown": rows("EVEN", "PRIME"),
        "dates": rows("2024-01-01", "2024-01-02"),
        "not a number": rows("nan", "nan"),
        "infinite": rows("inf", "0"),
    }
    for name, content in cases.items():
        yield labelled(name, content, "label")
    yield labelled("no such column", rows("even", "odd"), "verdict", label_column="verdict")
    yield labelled("the text's column", rows("even", "odd"), "label", label_column="text")
    yield labelled("no such second text", rows("even", "odd"), "other", text_pair_column="other")
    yield labelled("too few rows to hold any out", "text,label\nw3,even\nw4,odd\n", "too few")
    yield labelled(
        "for a model that writes", rows("even", "odd"), "label_column", model_name_or_path=lambda stage: stage.sources / "llama"
    )
    yield labelled("no rows", "text,label\n", "rows.csv")
    for metric in ("recall9", "metric.py", "./mine", ""):
        yield labelled(f"metric {metric!r}", rows("even", "odd"), "metric", metric=metric)


def _png(width: int, height: int, mode: int = 2) -> bytes:
    """A PNG that says it has this size, and has no more than a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (20, 24)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, kind)
    return out.getvalue()


def images(name: str, act: Callable[[Path], Any], *says: str, harmless: bool = False, **more: Any) -> Fault:
    def make(stage: Stage) -> list[str]:
        folder = stage.copy("images")
        act(folder)
        given = {"image_dir": folder, "calibration_file": None, "model_name_or_path": stage.sources / "vit"} | more
        return stage.words("prune", **given)

    return Fault(f"images: {name}", make, says, harmless)


def _images() -> Iterator[Fault]:
    def one(folder: Path, content: bytes) -> None:
        (folder / "cat" / "0.png").write_bytes(content)

    for name, damage in DAMAGES.items():
        whole = name == "without its last byte"  # of the mark at the end, which says nothing
        yield images(
            name,
            lambda folder, damage=damage: one(folder, damage((folder / "cat" / "0.png").read_bytes())),
            "0.png",
            harmless=whole,
        )
    for kind in ("JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        for share in (0.1, 0.5):
            yield images(
                f"{share:.0%} of a {kind}",
                lambda folder, kind=kind, share=share: one(folder, cut_at(share)(_encoded(kind))),
                "0.png",
            )
    for width, height in ((50_000, 50_000), (20_000, 20_000), (100_000, 1), (2**31 - 1, 2**31 - 1), (0, 0), (0, 20)):
        yield images(
            f"a PNG that says {width} x {height}", lambda folder, size=(width, height): one(folder, _png(*size)), "0.png"
        )
    yield images("text in a PNG's name", lambda folder: one(folder, b"not an image\n"), "0.png")
    yield images("of 32 bits", lambda folder: one(folder, _encoded("TIFF", "I")), "channel")
    yield images("of fractions", lambda folder: one(folder, _encoded("TIFF", "F")), "channel")

    def emptied(folder: Path) -> None:
        for path in folder.rglob("*.png"):
            path.unlink()

    yield images("none", emptied, "images")
    yield images("only texts", lambda folder: [path.rename(path.with_suffix(".txt")) for path in folder.rglob("*.png")], "images")
    for name, value in {
        "empty": "",
        "half": '{"size": ',
        "a list": "[]",
        "size": '{"size": "big", "image_processor_type": "ViTImageProcessor"}',
    }.items():

        def broken(stage: Stage, value: str = value) -> list[str]:
            model = stage.copy("vit")
            (model / "preprocessor_config.json").write_text(value)
            return stage.words("prune", image_dir=stage.sources / "images", calibration_file=None, model_name_or_path=model)

        yield Fault(f"preprocessor_config.json: {name}", broken, ("image processor" if name != "size" else "",))


def network(name: str, act: Callable[[Stage, dict[str, Any]], Any], *says: str) -> Fault:
    def make(stage: Stage) -> list[str]:
        given: dict[str, Any] = {
            "model_name_or_path": stage.sources / "vgg.pth",
            "network_class": "networks:Vgg",
            "network_args": '{"layers": [8, "M", 12, 12, "M", 16]}',
            "tensors_file": stage.sources / "inputs.npz",
            "calibration_file": None,
            "units": "channels",
            "min_channels": 2,
            "round_to": 1,
        }
        act(stage, given)
        return stage.words("prune", **given)

    return Fault(f"network: {name}", make, says)


def _tensors() -> Iterator[Fault]:
    for file, flag in (
        ("vgg.pth", "model_name_or_path"),
        ("vgg.safetensors", "model_name_or_path"),
        ("inputs.npz", "tensors_file"),
        ("inputs.safetensors", "tensors_file"),
    ):
        for how, damage in DAMAGES.items():

            def act(stage: Stage, given: dict[str, Any], file: str = file, flag: str = flag, damage: Any = damage) -> None:
                given[flag] = stage.copy(file)
                change(given[flag], damage)

            yield network(f"{file}: {how}", act, file)
    arrays: dict[str, dict[str, Any]] = {
        "no inputs": {"labels": torch.arange(4)},
        "whole numbers": {"pixel_values": torch.ones(4, 3, 16, 16, dtype=torch.int64)},
        "one dimension": {"pixel_values": torch.ones(4)},
        "no rows": {"pixel_values": torch.ones(0, 3, 16, 16)},
        "other channels": {"pixel_values": torch.ones(4, 1, 16, 16)},
        "labels of another number": {"pixel_values": torch.ones(4, 3, 16, 16), "labels": torch.arange(3)},
        "labels that are fractions": {"pixel_values": torch.ones(4, 3, 16, 16), "labels": torch.ones(4)},
        "too small to pool": {"pixel_values": torch.ones(4, 3, 2, 2)},
        "not finite": {"pixel_values": torch.full((4, 3, 16, 16), torch.nan)},
    }
    for name, tensors in arrays.items():

        def wrong(stage: Stage, given: dict[str, Any], tensors: dict[str, Any] = tensors) -> None:
            given["tensors_file"] = stage.folder / "inputs.safetensors"
            save_file(tensors, given["tensors_file"])

        yield network(f"inputs: {name}", wrong)
    settings = {
        "network_class": [
            "networks",
            "networks:",
            ":Vgg",
            "networks:Nothing",
            "nothing:Vgg",
            "networks:NETWORKS",
            "json:loads",
            "os:system",
        ],
        "network_args": ["{}", '{"layers": 3}', '{"layers": [8]}', '{"deep": 3}', '{"layers": ["x"]}', "[1]", "{x"],
        "tensors_file": ["/nowhere.npz", "", None],
        "model_name_or_path": ["/nowhere.pth", None, ""],
        "calibration": ["self", "python_docs"],
        "dtype": ["float16"],
    }
    for flag, values in settings.items():
        for value in values:
            yield network(f"--{flag} {value}", lambda stage, given, flag=flag, value=value: given.update({flag: value}))


def _gguf() -> Iterator[Fault]:
    def gguf(name: str, damage: Callable[[bytes], bytes]) -> Fault:
        def make(stage: Stage) -> list[str]:
            folder = stage.copy("gguf")
            change(folder / "model.gguf", damage)
            return stage.words("prune", model_name_or_path=folder, gguf_file="model.gguf")

        return Fault(f"model.gguf: {name}", make, ("model.gguf",))

    for how, damage in DAMAGES.items():
        yield gguf(how, damage)
    for size in (1, 4, 8, 16, 24, 40, 200, 1000):
        yield gguf(f"{size} bytes", lambda content, size=size: content[:size])
    for name, place, value in (
        ("another magic", 0, b"GGML"),
        ("version 0", 4, struct.pack("<I", 0)),
        ("version 99", 4, struct.pack("<I", 99)),
        ("big endian", 4, struct.pack(">I", 3)),
        ("a huge number of tensors", 8, struct.pack("<Q", 2**40)),
        ("a huge number of keys", 16, struct.pack("<Q", 2**40)),
        ("no keys", 16, struct.pack("<Q", 0)),
        ("a key of a terabyte", 24, struct.pack("<Q", 2**40)),
    ):
        yield gguf(name, lambda content, place=place, value=value: content[:place] + value + content[place + len(value) :])
    yield gguf("JSON", lambda content: json.dumps({"model": "llama"}).encode())
    yield gguf("a page of HTML, longer", lambda content: PAGE * 100)
