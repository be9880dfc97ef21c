"""What the bad inputs are made with: small sound sources, a fresh folder for each input, and ways to damage a file."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from conftest import VOCABULARY, tiny_encoder, tiny_model
from crias import BPE_VOCABULARY, byte_level, save
from datasets import Dataset
from networks import tiny_network
from vision import image_folder, processor_of, tiny_vision

from hf_spectral_prune import SpectralPruner
from hf_spectral_prune.cli import main

FLAGS: dict[str, Any] = {
    "target_reduction": 0.3,
    "target_scope": "prunable",
    "round_to": 4,
    "min_ffn_units": 4,
    "max_seq_length": 32,
    "num_calibration_samples": 8,
    "num_eval_samples": 4,
    "self_check": False,
    "criterion": "energy",
}


@dataclass(frozen=True)
class Stage:
    """A fresh folder for one input, and the sound sources that all inputs are made from.

    Attributes:
        folder: empty; what is damaged is a copy in here.
        sources: models, texts and folders that are not to be changed.
    """

    folder: Path
    sources: Path

    def copy(self, name: str, to: str | None = None) -> Path:
        """A copy of a source, which may be damaged."""
        target = self.folder / (to or name)
        source = self.sources / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        return target

    def words(self, command: str, **more: Any) -> list[str]:
        """The command with the tiny Llama, its text and flags that suit them; None leaves a flag out."""
        given: dict[str, Any] = {
            "model_name_or_path": self.sources / "llama",
            "calibration_file": self.sources / "text.txt",
            "output_dir": self.folder / "out",
        }
        given |= (FLAGS if command == "prune" else {"max_seq_length": 32, "num_eval_samples": 4}) | more
        if command == "evaluate":
            del given["output_dir"]
        if given.get("image_dir") or given.get("network_class"):
            given.pop("max_seq_length")  # an option of text
        words = [command, *(["--disable_tqdm"] if command not in ("evaluate", "detrimental") else [])]
        for name, value in given.items():
            if value is not None:
                words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
        return words


@dataclass(frozen=True)
class Fault:
    """One bad input.

    Attributes:
        name: what is wrong.
        make: writes the input into a stage and gives the command's words.
        says: what the line must hold: the name of the file, of the field or of the flag.
        harmless: it is taken (exit 0), because nothing goes wrong.
    """

    name: str
    make: Callable[[Stage], list[str]]
    says: tuple[str, ...] = ()
    harmless: bool = False


Damage = Callable[[bytes], bytes]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"


def cut_at(share: float) -> Damage:
    return lambda content: content[: int(len(content) * share)]


# Damage that comes to any file: by a broken download, a full disk, a clone without git-lfs, another program.
DAMAGES: dict[str, Damage] = {
    "empty": lambda _: b"",
    "a tenth": cut_at(0.1),
    "half": cut_at(0.5),
    "nine tenths": cut_at(0.9),
    "without its last byte": lambda content: content[:-1],
    "a git-lfs pointer": lambda _: POINTER,
    "a page of HTML": lambda _: PAGE,
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: np.random.default_rng(0).bytes(min(len(content), 5000)),
    "gzipped": lambda content: gzip.compress(content),
}
NESTED = b"[" * 100_000 + b"]" * 100_000
JSON_DAMAGES: dict[str, Damage] = {
    "empty": lambda _: b"",
    "half": cut_at(0.5),
    "nine tenths": cut_at(0.9),
    "a git-lfs pointer": lambda _: POINTER,
    "a page of HTML": lambda _: PAGE,
    "noise": lambda content: np.random.default_rng(0).bytes(200),
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "a list": lambda content: b"[" + content + b"]",
    "a text": lambda _: b'"text"',
    "a number": lambda _: b"3",
    "null": lambda _: b"null",
    "nested 100,000 deep": lambda _: NESTED,
    "a table with a value nested 100,000 deep": lambda _: b'{"a": ' + NESTED + b"}",
    "with a comma too many": lambda content: content.rstrip()[:-1] + b",}",
    "with a Python dict": lambda content: str(json.loads(content)).encode(),
}


def change(file: Path, damage: Damage) -> None:
    file.write_bytes(damage(file.read_bytes()))


def set_json(file: Path, *names: Any, to: Any) -> None:
    """Sets one value of a JSON file by the names that lead to it."""
    content = json.loads(file.read_text())
    place = content
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = to
    file.write_text(json.dumps(content))


def drop_json(file: Path, *names: Any) -> None:
    content = json.loads(file.read_text())
    place = content
    for name in names[:-1]:
        place = place[name]
    del place[names[-1]]
    file.write_text(json.dumps(content))


def random_words(number: int, seed: int = 0) -> list[str]:
    numbers = torch.randint(3, VOCABULARY, (number,), generator=torch.Generator().manual_seed(seed))
    return [f"w{word}" for word in numbers.tolist()]


def table_rows(number: int = 40) -> list[dict[str, str]]:
    words = random_words(6 * number)
    lines = [words[6 * row : 6 * row + 6] for row in range(number)]
    return [{"text": " ".join(line), "label": "odd" if int(line[0][1:]) % 2 else "even"} for line in lines]


def write_sources(folder: Path, tokenizer: Any) -> Path:
    """Everything sound, made once."""
    tiny_model().save_pretrained(folder / "llama")
    tiny_model().save_pretrained(folder / "sharded", max_shard_size="20KB")
    names = {"id2label": {0: "even", 1: "odd"}, "label2id": {"even": 0, "odd": 1}}
    tiny_encoder("bert", num_labels=2, **names).save_pretrained(folder / "bert")
    for name in ("llama", "sharded", "bert"):
        tokenizer.save_pretrained(folder / name)
    tiny_vision("vit").save_pretrained(folder / "vit")
    processor_of("vit").save_pretrained(folder / "vit")
    image_folder(folder / "images", each=3)
    (folder / "text.txt").write_text(" ".join(random_words(2000)))
    rows = table_rows()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    (folder / "rows.tsv").write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    for name in ("text.txt", "rows.jsonl", "rows.csv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes(), mtime=0))
    network = tiny_network("vgg")
    torch.save(network.state_dict(), folder / "vgg.pth")
    from safetensors.torch import save_file

    save_file(network.state_dict(), folder / "vgg.safetensors")
    generator = torch.Generator().manual_seed(0)
    tensors = {"pixel_values": torch.randn(20, 3, 16, 16, generator=generator), "labels": torch.arange(20) % 4}
    np.savez(folder / "inputs.npz", **{name: value.numpy() for name, value in tensors.items()})
    save_file(tensors, folder / "inputs.safetensors")
    _write_runs(folder)
    return folder


def _write_runs(folder: Path) -> None:
    """What the command line itself writes: a checkpoint, a pruned folder, a comparison and a GGUF file."""
    stage = Stage(folder, folder)
    more = {"num_rounds": 2, "save_strategy": "steps", "compensation": "least_squares"}
    with mock.patch.object(SpectralPruner, "save_model", side_effect=OSError("stopped")):  # a finished run keeps none
        assert main(stage.words("prune", output_dir=folder / "run", **more)) == 2
    next(folder.glob("run*/checkpoint-1")).rename(folder / "checkpoint")
    assert main(stage.words("prune", output_dir=folder / "pruned")) == 0
    words = stage.words("compare", output_dir=folder / "comparison", criteria=["energy", "random"], num_calibration_samples=4)
    assert main([*words, "--reductions", "0.2"]) == 0
    byte_model = tiny_model(vocab_size=BPE_VOCABULARY)
    save(folder / "bytes", byte_model, byte_level())
    assert main(["export", "gguf", str(folder / "bytes"), "--outtype", "f32"]) == 0
    (folder / "gguf").mkdir()
    next((folder / "bytes").glob("*.gguf")).rename(folder / "gguf" / "model.gguf")
