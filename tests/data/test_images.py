"""Images as calibration data: image columns, folders and arrays through the model's own processor, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from vision import CLASSES, VISION, image_batch, image_folder, processor_of, prune, random_images, tiny_vision

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, build_images, load_images
from hf_spectral_prune.calibration.signals import Spatial, readers
from hf_spectral_prune.models.families import unit_groups

VIT = tiny_vision("vit").config


def processed(images, family: str = "vit") -> torch.Tensor:
    return processor_of(family)(images=images, return_tensors="pt")["pixel_values"]


def joined(data) -> torch.Tensor:
    return torch.cat([batch["pixel_values"] for batch in data])


@pytest.mark.parametrize("family", VISION)
def test_images_go_through_the_models_own_processor(family):
    images = random_images(5)
    data = build_images(images, processor_of(family), tiny_vision(family).config, batch_size=2)
    assert torch.equal(joined(data), processed(images, family))
    assert [len(batch["pixel_values"]) for batch in data] == [2, 2, 1]
    assert data.protocol["input_shape"] == [3, 16, 16] and data.num_sequences == 5


def test_image_column_folder_and_arrays_give_the_same_batches(tmp_path):
    folder = image_folder(tmp_path / "images", each=3)
    loaded = load_images(folder)
    images = [row["image"] for row in loaded]
    column = datasets.Dataset.from_dict(
        {"photo": images, "label": [CLASSES[row["label"]] for row in loaded]},
        features=datasets.Features({"photo": datasets.Image(), "label": datasets.Value("string")}),
    )
    arrays = [np.asarray(image) for image in images]
    labels = [row["label"] for row in loaded]
    found = [
        build_images(source, processor_of("vit"), VIT, num_samples=None)
        for source in (loaded, column, (arrays, labels), list(zip(images, labels, strict=True)), (np.stack(arrays), labels))
    ]
    assert torch.equal(joined(found[0]), processed(images))
    for other in found[1:]:
        assert torch.equal(joined(other), joined(found[0]))
        for one, two in zip(other, found[0], strict=True):
            assert torch.equal(one["labels"], two["labels"])
    assert found[0].batches[0]["labels"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_labels_are_matched_by_name_where_both_sides_have_names(tmp_path):
    numbers = {name: 3 - index for index, name in enumerate(CLASSES)}
    config = tiny_vision("vit", label2id=numbers, id2label={number: name for name, number in numbers.items()}).config
    data = build_images(load_images(image_folder(tmp_path / "images", each=1)), processor_of("vit"), config)
    assert data.batches[0]["labels"].tolist() == [3, 2, 1, 0]


def test_floats_and_ready_batches_are_taken_as_they_are():
    batches = [image_batch(3, seed) for seed in (0, 1)]
    pixels, labels = torch.cat([batch["pixel_values"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])
    for source in (batches, (pixels, labels), DataLoader(list(zip(pixels, labels, strict=True)), batch_size=3)):
        data = build_images(source, None, VIT, batch_size=3)
        assert torch.equal(joined(data), pixels)
        assert torch.equal(torch.cat([batch["labels"] for batch in data]), labels)
    assert torch.equal(joined(build_images(pixels.numpy(), None, VIT)), pixels)


def test_the_draw_follows_the_seed():
    pixels = torch.arange(40.0).reshape(40, 1, 1, 1).expand(40, 3, 16, 16)
    one, again, other = (joined(build_images(pixels, None, VIT, num_samples=10, seed=seed))[:, 0, 0, 0] for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(one, one.unique()) and len(one) == 10
    first = joined(build_images(pixels, None, VIT, num_samples=10, shuffle=False))[:, 0, 0, 0]
    assert first.tolist() == list(range(10))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_images_of_any_mode_are_read_in_the_models_channels(mode):
    first, second = random_images(2)
    odd = second.convert(mode)
    data = build_images([first, odd], processor_of("vit"), VIT)
    assert torch.equal(joined(data), processed([first, odd.convert("RGB")]))
    grey = tiny_vision("vit", num_channels=1).config
    # The processor's mean and deviation are of three channels.
    processor = type(processor_of("vit"))(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
    data = build_images([first, odd], processor, grey)
    assert joined(data).shape == (2, 1, 16, 16)


def named_images(labels: list[int | None]) -> datasets.Dataset:
    """Images whose labels have names that the model knows; a hidden label is -1."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict({"image": random_images(len(labels)), "label": labels}, features=features)


def test_hidden_labels_of_a_plain_network_are_refused_and_ignored_targets_are_not():
    with pytest.raises(ValueError, match="hidden"):
        build_images((torch.randn(2, 5), [0, -1]))
    assert build_images((torch.randn(2, 5), [0, -100])).batches[0]["labels"].tolist() == [0, -100]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: torch.randn(4, 3, 20, 20), "20 x 20, and the model takes 16 x 16"),
        (lambda: torch.randn(4, 1, 16, 16), r"\(1, 16, 16\), and the model takes \(3, height, width\)"),
        (lambda: torch.randn(4, 16), "the model takes"),
        (lambda: [image.convert("F") for image in random_images(2)], r'1 channel \(mode F\).*convert\("RGB"\)'),
        (lambda: [np.zeros((20, 20, 4), np.uint8)], r"4 channels \(shape \(20, 20, 4\)\)"),
        (lambda: [np.zeros((20, 20), np.uint8)], "1 channel"),
        (lambda: ["a.png"], "An image is a str"),
        (lambda: [], "empty"),
        (lambda: datasets.Dataset.from_dict({"text": ["a"]}), "Which column holds the images"),
        (lambda: 7, "A int is not a source of images"),
        (lambda: (torch.randn(4, 3, 16, 16), [0, 1]), "4 images and 2 labels"),
        (lambda: (torch.randn(4, 3, 16, 16), [0, 1, 2, 4]), r"A label is 4, and the model has 4 classes \(0 to 3\)"),
        (lambda: (torch.randn(4, 3, 16, 16), [0, 1, 2, -1]), r"A label is -1: .* hidden.*Name a split with labels"),
        (lambda: named_images([0, -1, 2]), r"A label is -1: .* hidden.*Name a split with labels"),
        (lambda: named_images([0, None, 2]), "An image has no label"),
        (lambda: (torch.randn(1, 3, 16, 16), ["bird"]), "`bird` is none of the model's"),
        (lambda: [torch.randn(3, 16, 16), torch.randn(3, 8, 8)], "different shapes"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_line(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_images(source(), processor_of("vit"), VIT)
    assert "\n" not in str(caught.value)


def test_images_need_a_processor():
    with pytest.raises(ValueError, match="no image processor"):
        build_images(random_images(2), None, VIT)


@pytest.mark.parametrize(("name", "kind"), [("gone", FileNotFoundError), ("empty", ValueError), ("notes", ValueError)])
def test_folders_without_images_are_refused(name, kind, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    with pytest.raises(kind, match="image_dir") as caught:
        load_images(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_pruner_takes_images_and_measures_accuracy(tmp_path):
    model = tiny_vision("resnet-basic")
    folder = load_images(image_folder(tmp_path / "images", each=4))
    args = SpectralPruningArguments(
        units=["channels"], criterion="taylor", target_reduction=0.3, round_to=2, min_channels=2, disable_tqdm=True
    )
    output = SpectralPruner(model, args, folder, folder, processor_of("resnet-basic")).prune()
    with torch.no_grad():
        predicted = model(pixel_values=processed([row["image"] for row in folder], "resnet-basic")).logits.argmax(-1)
    labels = torch.tensor(folder["label"])
    assert output.report["metrics_after"]["after_accuracy"] == pytest.approx(float((predicted == labels).float().mean()))
    assert output.report["calibration"]["labels"] and output.report["calibration"]["num_sequences"] == 16


# ---- which positions of a map are read


def rows_of(form: str, value: torch.Tensor, seed: int = 0) -> torch.Tensor:
    model = tiny_vision("resnet-basic")
    group = unit_groups(model)[0]
    reader = readers(model, group, "before", Spatial(form, 5, seed))[0]
    return reader.rows(value)


def test_spatial_forms_read_all_some_or_the_mean_of_the_positions():
    value = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    every = value.flatten(2).transpose(1, 2)  # (B, positions, channels)
    assert torch.equal(rows_of("all", value), every)
    assert torch.allclose(rows_of("pooled", value)[:, 0], value.mean(dim=(2, 3)))
    sampled = rows_of("sampled", value)
    assert sampled.shape == (3, 5, 8)
    for image in range(3):  # every row is a position of its own image, all channels together
        assert all(any(torch.equal(row, other) for other in every[image]) for row in sampled[image])
    assert torch.equal(sampled, rows_of("sampled", value)) and not torch.equal(sampled, rows_of("sampled", value, seed=1))
    assert torch.equal(rows_of("sampled", value[..., :2, :2]), value[..., :2, :2].flatten(2).transpose(1, 2))


def test_spatial_option_changes_scores_of_channels_but_not_of_tokens():
    def scores(family: str, form: str) -> torch.Tensor:
        found = prune(tiny_vision(family), criterion="spectral", criterion_args={"spatial": form}).scores
        return torch.cat(list(found.values()))

    assert not torch.equal(scores("resnet-basic", "sampled"), scores("resnet-basic", "pooled"))
    assert not torch.equal(scores("resnet-basic", "sampled"), scores("resnet-basic", "all"))
    assert torch.equal(scores("vit", "sampled"), scores("vit", "pooled"))
