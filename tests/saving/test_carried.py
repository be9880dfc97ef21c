"""What a model's folder holds beside the model comes out of pruning too; what is not known is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import encoder_batch, tiny_encoder
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModel

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments

MODULES = ["", "1_Pooling", "2_Dense", "3_Normalize", "../outside"]
CARRIED = {
    "1_Pooling/config.json": '{"pooling_mode": "cls"}',
    "2_Dense/config.json": "{}",
    "custom_st.py": "# a module of its own",
    "config_sentence_transformers.json": "{}",
    "sentence_bert_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool.jinja": "{{ tools }}",
    "tokenizer.model": "pieces",
    "preprocessor_config.json": "{}",
    "LICENSE": "terms",
}
LEFT = (
    "pytorch_model.bin",
    "optimizer.pt",
    ".env",
    "README.md",
    "trainer_state.json",
    "onnx/model.onnx",
    "checkpoint-5/model.bin",
)


@pytest.fixture
def source(tmp_path, tokenizer) -> Path:
    folder = tmp_path / "bge"
    tiny_encoder(task="Model").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [{"idx": index, "path": path, "type": "custom_st.Module"} for index, path in enumerate(MODULES)]
    for name, text in (CARRIED | dict.fromkeys(LEFT, "x") | {"modules.json": json.dumps(modules), "notes.txt": "x"}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    torch.save({"linear.weight": torch.ones(2, 2)}, folder / "2_Dense" / "pytorch_model.bin")
    (tmp_path / "secret").write_text("a token")
    (folder / "chat_template.json").symlink_to(tmp_path / "secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    return folder


def prune(name: str, out: Path, processing_class=None) -> None:
    model = AutoModel.from_pretrained(name)
    args = SpectralPruningArguments(
        output_dir=str(out), target_reduction=0.1, round_to=4, criterion="magnitude", self_check=False, disable_tqdm=True
    )
    pruner = SpectralPruner(model, args, [encoder_batch(model, 2, 12)], processing_class=processing_class)
    pruner.prune()
    pruner.save_model()


def check_carried(out: Path) -> None:
    for name, text in CARRIED.items():
        assert (out / name).read_text() == text, name
    assert (out / "modules.json").is_file() and (out / "3_Normalize").is_dir()
    assert torch.equal(load_file(out / "2_Dense" / "model.safetensors")["linear.weight"], torch.ones(2, 2))
    assert not (out / "2_Dense" / "pytorch_model.bin").exists()
    left = [name for name in (*LEFT, "notes.txt", "chat_template.json", "outside") if name != "README.md"]
    assert not [name for name in left if (out / name).exists()]
    assert (out / "README.md").read_text() != "x"


def test_a_folder_of_sentence_transformers_comes_out_whole(source, tmp_path, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    prune(str(source), tmp_path / "out", tokenizer)
    check_carried(tmp_path / "out")
    told = [record.message for record in caplog.records if "Not carried over" in record.message]
    what = "as no file that is known: `chat_template.json`, `notes.txt`. Copy what the model needs."
    assert told == [f"Not carried over from `{source}`, {what}"]
    written = json.loads((tmp_path / "out" / "pruning_report.json").read_text())["written"]
    assert {*CARRIED, "modules.json", "2_Dense/model.safetensors"} <= set(written)


def test_so_does_a_model_of_the_hub_by_what_its_snapshot_holds(source, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = "c" * 40
    repo = tmp_path / "cache" / "models--me--bge"
    snapshot = repo / "snapshots" / commit
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        blob = repo / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        place = snapshot / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blob)
    (snapshot / "chat_template.json").unlink()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    prune("me/bge", tmp_path / "out")
    check_carried(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()  # no tokenizer was given, and the model's own still fits
