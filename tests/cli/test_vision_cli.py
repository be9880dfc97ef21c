"""`cria` on models that read images: the folder, its card and its report, and errors in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from vision import image_batch, image_folder, processor_of, random_images, tiny_vision

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.cli.main import main


def flags(folder: Path, **more) -> list[str]:
    values = {
        "model_name_or_path": folder / "model",
        "image_dir": folder / "images",
        "output_dir": folder / "out",
        "criterion": "spectral",
        "target_scope": "flops",
        "target_reduction": 0.4,
        "round_to": 2,
        "min_channels": 2,
        "units": "channels",
    }
    words = ["--disable_tqdm"]
    for name, value in (values | more).items():
        words += [f"--{name}", str(value)] if value is not None else []
    return words


@pytest.fixture
def folder(tmp_path):
    """A tiny ResNet with its image processor, and a folder of images in 4 classes."""
    tiny_vision("resnet-bottleneck").save_pretrained(tmp_path / "model")
    processor_of("resnet-bottleneck").save_pretrained(tmp_path / "model")
    image_folder(tmp_path / "images")
    return tmp_path


@pytest.mark.usefixtures("report_pages")
def test_command_line_prunes_a_folder_of_images_and_the_card_says_how_to_load_it(folder, capsys):
    assert main(["prune", *flags(folder)]) == 0
    printed = capsys.readouterr().out
    assert "MACs of one image" in printed and "Held-out accuracy" in printed and "Channels per layer" in printed
    out = folder / "out"
    report = json.loads((out / "pruning_report.json").read_text())
    assert set(report["self_check"]) == {"remote_code", "with_package"}
    assert {way["max_abs_diff"] for way in report["self_check"].values()} == {0.0}
    assert report["macs"]["before"] * 0.6 <= report["macs"]["after"] < report["macs"]["before"]
    assert report["calibration"]["source"] == "images"
    assert report["evaluation"]["source"] == "images, held out" and report["evaluation"]["num_sequences"] == 6
    assert report["calibration"]["num_sequences"] == 26

    card = (out / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "| MACs of one image |" in card and "of the FLOPs of one image" in card and "26 images" in card
    model = AutoModelForImageClassification.from_pretrained(out)
    pixels = AutoImageProcessor.from_pretrained(out)(images=random_images(2), return_tensors="pt")["pixel_values"]
    for code in re.findall(r"```python\n(.*?)```", card, re.S):
        assert "AutoModelForImageClassification" in code and "AutoImageProcessor" in code
        names: dict = {}
        exec(code.replace('("out"', f'("{out}"'), names)
        assert type(names["model"]).__name__ == "CriaResNetForImageClassification"
        assert torch.equal(names["processor"](images=random_images(2), return_tensors="pt")["pixel_values"], pixels)
        assert torch.allclose(names["model"](pixels).logits, model(pixels).logits, atol=1e-6)
    page = (out / "report.html").read_text()
    assert "MACs" in page and "channels" in page.lower()

    capsys.readouterr()
    # The same images are held out; named by themselves, all are measured on.
    for setting, number in (("image_dir", 6), ("eval_image_dir", 32)):
        assert main(["evaluate", "--model_name_or_path", str(out), f"--{setting}", str(folder / "images")]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["evaluation"]["num_sequences"] == number
        assert figures["macs"] == report["macs"]["after"]
        if number == 6:
            assert figures["accuracy"] == report["metrics_after"]["after_accuracy"]


def test_scores_and_labels_on_the_command_line(folder, capsys):
    cuts = ("output_dir", "target_scope", "target_reduction", "round_to", "min_channels")
    words = flags(folder, criterion="taylor", num_calibration_samples=8, **dict.fromkeys(cuts))
    assert main(["score", *words]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["calibration"]["labels"] and len(found["scores"]["resnet.embedder.embedder.convolution.channels"]) == 8


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        ({"image_dir": None}, ("no images to calibrate on", "image_dir")),
        ({"image_dir": "nowhere"}, ("`nowhere` is not a folder",)),
        ({"units": "ffn"}, ("`channels`",)),
        ({"target_reduction": 0.98}, ("would empty layers",)),
        ({"compensation": "bias"}, ("compensation",)),
        ({"dataset_name": "some"}, ("Give one of them",)),
        ({"image_column": "photo"}, ("photo", "image")),
        ({"label_column": "class"}, ("class", "label")),
        ({"eval_image_dir": "nowhere"}, ("`eval_image_dir` `nowhere` is not a folder",)),
        ({"recovery": "lora"}, ("lora", "`full` or `distill`")),
    ],
)
def test_commands_that_cannot_work_end_in_one_line(more, messages, folder, capsys):
    assert main(["prune", *flags(folder, **more)]) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("cria")]
    assert len(lines) == 1
    for message in messages:
        assert message in lines[0]
    assert not (folder / "out").exists()


def test_a_folder_without_image_processor_is_told(folder, capsys):
    (folder / "model" / "preprocessor_config.json").unlink()
    assert main(["prune", *flags(folder)]) == 2
    assert "no image processor that loads" in capsys.readouterr().err


def test_weights_alone_need_no_images_unless_batch_norms_or_flops_do(folder, capsys):
    tiny_vision("vit").save_pretrained(folder / "vit")
    processor_of("vit").save_pretrained(folder / "vit")
    words = {"image_dir": None, "criterion": "magnitude", "units": "ffn", "min_ffn_units": 4, "target_scope": "prunable"}
    words["model_name_or_path"] = folder / "vit"
    assert main(["prune", *flags(folder, **words, eval_image_dir=folder / "images")]) == 0
    report = json.loads((folder / "out" / "pruning_report.json").read_text())
    assert report["calibration"] is None and report["evaluation"]["num_sequences"] == 32
    for more in ({"target_scope": "flops"}, {"model_name_or_path": folder / "model", "units": "channels"}):
        assert main(["prune", *flags(folder, output_dir=folder / "other", **(words | more))]) == 2
        assert "no images to calibrate on" in capsys.readouterr().err


def test_one_grey_and_one_transparent_image_stop_no_run(folder):
    first, second = sorted((folder / "images").rglob("*.png"))[:2]
    for path, mode in ((first, "L"), (second, "RGBA")):
        with Image.open(path) as image:
            converted = image.convert(mode)
        converted.save(path)
    assert main(["prune", *flags(folder, num_calibration_samples=32)]) == 0


@pytest.mark.parametrize("recovery", ["full", "distill"])
def test_recovery_on_images(recovery, tmp_path):
    args = SpectralPruningArguments(
        units=["channels"],
        criterion="magnitude",
        target_reduction=0.3,
        round_to=2,
        min_channels=2,
        recovery=recovery,
        training_args={"max_steps": 4, "per_device_train_batch_size": 4, "output_dir": str(tmp_path), "report_to": "none"},
        disable_tqdm=True,
    )
    data = [image_batch(8, seed) for seed in (0, 1)]
    teacher = tiny_vision("resnet-basic") if recovery == "distill" else None
    rows = [{name: value[index] for name, value in batch.items()} for batch in data for index in range(8)]
    pruner = SpectralPruner(tiny_vision("resnet-basic"), args, data, eval_dataset=data, train_dataset=rows, teacher=teacher)
    output = pruner.prune()
    assert output.report["recovery"]["kept"] in ("recovered", "unrecovered")
    assert "after_loss" in output.report["recovery"]["metrics"]
