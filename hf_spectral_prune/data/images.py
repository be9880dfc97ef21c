"""Calibration images: reads a source, puts it through the model's image processor and cuts it into batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from datasets import Dataset, Image, IterableDataset, load_dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..utils.types import Options, Row
from ..utils.words import first_line
from .labels import folded, label_ids
from .sources import some_rows
from .texts import Batch, CalibrationData, with_sizes

if TYPE_CHECKING:
    import PIL.Image
    from transformers import BaseImageProcessor

logger = logging.get_logger(__name__)

_MOST_PIXELS = 50_000_000  # 150 MB decoded; cameras make half as many
# Rows of a stream where all are asked for: it may have no end.
_MOST_STREAMED = 1000

_LABEL_COLUMNS = ("label", "labels")


def build_images(
    source: Any,
    processing_class: BaseImageProcessor | None = None,
    config: PreTrainedConfig | None = None,
    *,
    num_samples: int | None = 256,
    batch_size: int = 32,
    shuffle: bool = True,
    seed: int = 42,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str = "unnamed",
) -> CalibrationData:
    """Cuts images into batches with `pixel_values` (B, C, H, W) and, where there are labels, `labels` (B,).

    Args:
        source: a `datasets.Dataset` with an image column (or `pixel_values`); a pair (images, labels) or images alone, as a
            tensor, an array or a list of images; a map-style data set of pairs (image, label) or of rows with
            `pixel_values`; or ready batches (a `DataLoader`, a list of dicts of tensors), which are all used, unchanged.
            Floating-point tensors and arrays are taken as they are, in the shape of the model's inputs; images and uint8
            arrays (H, W, C) go through the processor. Images are converted to RGB, or to grey for a model of 1 channel.
        processing_class: the model's image processor.
        config: the model's; what it says of channels, sizes and labels is checked.
        num_samples: how many images; None takes all.
        shuffle: True takes them at random by `seed`, without replacement and in their order; False takes the first ones.
            Of a stream they are drawn from the first eight times as many, and with `num_samples=None` the first 1,000 are taken.
        image_column: of a `Dataset`; by default its only image column.
        label_column: of a `Dataset`; by default `label` or `labels` if it has one.
        name: what the protocol calls the source.

    Raises:
        ValueError: images without a processor, of a wrong size or number of channels, labels that the model does not have, an
            empty source, or one of another kind.
    """
    for setting, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{setting}` is {value}, but must be at least 1.")
    if isinstance(source, IterableDataset):
        source = some_rows(source, num_samples or _MOST_STREAMED, shuffle and num_samples is not None, seed)
    if is_batches(source):
        batches = [_as_batch(item) for item in source]
        settings: Options = dict.fromkeys(("num_samples", "shuffle", "seed"))
    else:
        images, labels = _images_and_labels(source, image_column, label_column, config)
        chosen = _chosen(len(images), num_samples, shuffle, seed)
        if num_samples is not None and len(chosen) < num_samples:
            logger.warning(f"`{name}` has {len(chosen)} images, and up to {num_samples} were asked for: all are used.")
        parts = [chosen[at : at + batch_size] for at in range(0, len(chosen), batch_size)]
        batches = [_batch(images, labels, part, processing_class, config) for part in parts]
        settings = {"num_samples": num_samples, "shuffle": shuffle, "seed": seed if shuffle else None}
    if not batches:
        raise ValueError("The source of images is empty. Give at least one.")
    for batch in batches:
        _check(batch, config)
    shape = list(batches[0]["pixel_values"].shape[1:])
    return with_sizes(batches, {"source": name, "input_shape": shape, "labels": "labels" in batches[0]} | settings)


def load_images(folder: str | Path, setting: str = "image_dir") -> Dataset:
    """Images of a folder; the names of its subfolders, if it has any, are the labels.

    Args:
        setting: what errors call the folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"`{setting}` `{folder}` is not a folder.")
    try:
        found = load_dataset("imagefolder", data_dir=str(folder), split="train")
    except (ValueError, FileNotFoundError, IndexError) as error:
        raise ValueError(
            f"`{setting}` `{folder}` cannot be read as a folder of images: {first_line(error)}. Name a folder of "
            "image files, with one subfolder per class."
        ) from None
    if len(found) == 0 or "image" not in found.column_names:
        raise ValueError(f"`{setting}` `{folder}` holds no images. Name a folder of image files, with one subfolder per class.")
    return found


# ---- sources


def is_batches(source: object) -> bool:
    if isinstance(source, DataLoader):
        return True
    first = source[0] if isinstance(source, list) and source else None
    return isinstance(first, Mapping) and all(isinstance(value, Tensor) for value in first.values()) and not _is_row(first)


def _is_row(item: object) -> bool:
    """Whether a dict is one row of a Trainer's data set, rather than a batch."""
    if not isinstance(item, Mapping) or "pixel_values" not in item:
        return False
    label = next((item[name] for name in _LABEL_COLUMNS if name in item), None)
    return np.ndim(item["pixel_values"]) == 3 if label is None else np.ndim(label) == 0


def _as_batch(item: object) -> Batch:
    if isinstance(item, Mapping) and "pixel_values" in item:
        return {key: torch.as_tensor(item[key]) for key in ("pixel_values", "labels") if key in item}
    if isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(value, Tensor) for value in item):
        return {"pixel_values": item[0], "labels": item[1]}
    if isinstance(item, Tensor):
        return {"pixel_values": item}
    raise ValueError("A batch of images must be a dict with `pixel_values`, a pair (inputs, labels) or a tensor.")


def _images_and_labels(
    source: Any, image_column: str | None, label_column: str | None, config: PreTrainedConfig | None
) -> tuple[Any, Any]:
    """Two sequences of one length; the second is None where there are no labels."""
    if isinstance(source, Dataset):
        column = _image_column(source, image_column)
        if label_column is not None and label_column not in source.column_names:
            raise ValueError(f"`label_column` is {label_column!r}, but the data set has the columns {source.column_names}.")
        label = label_column or next((name for name in _LABEL_COLUMNS if name in source.column_names), None)
        names = getattr(source.features.get(label), "names", None) if label is not None else None
        rows = source.with_format("numpy" if column == "pixel_values" else None)
        labels = None if label is None else _named(list(source[label]), names, config)
        return _Column(rows, column), labels
    if isinstance(source, (Tensor, np.ndarray)):
        return source, None
    if isinstance(source, tuple) and len(source) == 2 and not _is_image(source[0]):
        images, labels = source
        if len(images) != len(labels):
            raise ValueError(f"There are {len(images)} images and {len(labels)} labels. Give one label per image.")
        return images, labels
    if isinstance(source, (list, torch.utils.data.Dataset)) and len(source):  # type: ignore[arg-type]
        items: Any = source
        if _is_row(items[0]):
            label = next((name for name in _LABEL_COLUMNS if name in items[0]), None)
            return _Pairs(items, "pixel_values"), None if label is None else _Pairs(items, label)
        if isinstance(items[0], (tuple, list)) and len(items[0]) == 2:
            return _Pairs(items, 0), _Pairs(items, 1)
        return items, None
    if hasattr(source, "__len__") and len(source) == 0:
        raise ValueError("The source of images is empty. Give at least one.")
    raise ValueError(
        f"A {type(source).__name__} is not a source of images. Give a `datasets.Dataset` with an image column, a pair (images, "
        "labels) of tensors or arrays, a list of images, or a `DataLoader`."
    )


class _Column:
    """One column of a data set, row by row: nothing is decoded before it is asked for."""

    def __init__(self, rows: Dataset, column: str) -> None:
        feature = rows.features[column]
        self.decode = feature.decode_example if isinstance(feature, Image) else None
        self.rows = rows.cast_column(column, Image(decode=False)) if self.decode else rows
        self.column = column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        value = self.rows[index][self.column]
        return value if self.decode is None or value is None else _decoded(value, index, self.decode)


def _decoded(stored: Row, index: int, decode: Callable[[Row], PIL.Image.Image]) -> PIL.Image.Image:
    """An image from its bytes or file; its size is looked at before it is decoded, since a few bytes can stand for gigabytes."""
    import PIL.Image  # work on text does without

    name = f"`{stored['path']}`" if stored.get("path") else f"Image {index}"
    try:
        with PIL.Image.open(stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"])) as header:
            width, height = header.size
        if width * height <= _MOST_PIXELS:
            return decode(stored)
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"{name} cannot be read as an image ({first_line(error)}). Get it again, or leave it out.") from None
    raise ValueError(f"{name} has {width:,} x {height:,} pixels; at most {_MOST_PIXELS:,} are read. Scale it down.")


class _Pairs:
    """One entry of every pair or row of a map-style data set."""

    def __init__(self, items: Sequence[Any], place: int | str) -> None:
        self.items, self.place = items, place

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index][self.place]


def _image_column(source: Dataset, image_column: str | None) -> str:
    images = [name for name, feature in source.features.items() if isinstance(feature, Image)]
    known = [*images, *(name for name in ("pixel_values",) if name in source.column_names)]
    chosen = image_column or (known[0] if len(known) == 1 else None)
    if chosen is None or chosen not in known:
        what = f"`image_column` is {image_column!r}" if image_column else "Which column holds the images?"
        raise ValueError(f"{what}: the data set has {source.column_names}, of which {known or 'none'} hold images.")
    return chosen


def _named(labels: list[int | None], names: list[str] | None, config: PreTrainedConfig | None) -> list[int | None]:
    """Labels by name where both the data set and the model have names, so that their order does not matter."""
    if names is None:
        return labels
    ids = label_ids(names, config)
    # A hidden label (-1) has no name, and must not become the last one.
    return [label if label is None or label < 0 else ids[label] for label in labels]


def _chosen(available: int, num_samples: int | None, shuffle: bool, seed: int) -> list[int]:
    if num_samples is None or available <= num_samples:
        return list(range(available))
    if not shuffle:
        return list(range(num_samples))
    return sorted(torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:num_samples].tolist())


# ---- batches


def _batch(
    images: Sequence[Any],
    labels: Sequence[int | str | None] | None,
    indices: list[int],
    processing_class: BaseImageProcessor | None,
    config: PreTrainedConfig | None,
) -> Batch:
    batch = {"pixel_values": _pixels([images[index] for index in indices], processing_class, config)}
    if labels is not None:
        batch["labels"] = torch.tensor([_label_id(labels[index], config) for index in indices])
    return batch


def _pixels(images: list[Any], processing_class: BaseImageProcessor | None, config: PreTrainedConfig | None) -> Tensor:
    first = images[0]
    if isinstance(first, (Tensor, np.ndarray)) and not _is_raw(first):
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"The images have different shapes: {sorted(shapes)[0]} and {sorted(shapes)[-1]}. Give one shape.")
        return torch.stack([torch.as_tensor(image) for image in images]).float()
    if not (_is_image(first) or isinstance(first, (Tensor, np.ndarray))):
        raise ValueError(f"An image is a {type(first).__name__}. Give PIL images, arrays or tensors.")
    if processing_class is None:
        raise ValueError(
            "The images are not yet the model's inputs, and there is no image processor to make them so. Pass "
            "`processing_class`, or floating-point tensors as the model takes them."
        )
    images = [_converted(image, config) for image in images]
    for image in images:
        _check_channels(image, config)
    return processing_class(images=images, return_tensors="pt")["pixel_values"]


def _is_image(value: object) -> TypeGuard[PIL.Image.Image]:
    """Whether it is a PIL image, asked without importing it, because work on text does without."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _converted(image: object, config: PreTrainedConfig | None) -> object:
    """A PIL image with as many channels as the model reads: most folders have a grey, transparent or CMYK one somewhere."""
    mode = {1: "L", 3: "RGB"}.get(getattr(config, "num_channels", None) or 0)
    # Integers of more than 8 bits and fractions ("I", "I;16", "F") would be clipped: how to scale them is the user's to say.
    if mode is None or not _is_image(image) or image.mode == mode or image.mode.startswith(("I", "F")):
        return image
    return image.convert(mode)


def _is_raw(image: Tensor | np.ndarray) -> bool:
    return image.dtype in (torch.uint8, np.dtype("uint8"))


def _check_channels(image: Any, config: PreTrainedConfig | None) -> None:
    wanted = getattr(config, "num_channels", None)
    if _is_image(image):
        found, kind = len(image.getbands()), f"mode {image.mode}"
    else:
        found, kind = (image.shape[-1] if image.ndim == 3 else 1), f"shape {tuple(image.shape)}"
    if wanted is not None and found != wanted:
        raise ValueError(
            f"An image has {found} channel{'s' if found > 1 else ''} ({kind}), and the model takes {wanted}. Convert the "
            'images (e.g. `image.convert("RGB")`).'
        )


def _label_id(label: int | str | None, config: PreTrainedConfig | None) -> int:
    if label is None:
        raise ValueError("An image has no label. Give every image one, or leave those without out.")
    if isinstance(label, str):
        known: dict[str, int] = getattr(config, "label2id", None) or {}
        found = known.get(label, {folded(name): number for name, number in known.items()}.get(folded(label)))
        if found is None:
            raise ValueError(
                f"The label `{label}` is none of the model's: {', '.join(f'`{name}`' for name in list(known)[:5])}, ..."
            )
        return found
    return int(label)


def _check(batch: Batch, config: PreTrainedConfig | None) -> None:
    """Checks a batch against what the model's config says.

    Raises:
        ValueError: wrong number of channels, wrong size, hidden labels, or a label that the model does not have.
    """
    labels = batch.get("labels")
    if labels is not None and bool(((labels < 0) & (labels != -100)).any()):  # -100 says that a row has no target
        raise ValueError(
            f"A label is {int(labels.min())}: the labels of this split are hidden, as those of test splits often are. Name a "
            "split with labels."
        )
    if config is None:
        return
    pixels = batch["pixel_values"]
    channels = getattr(config, "num_channels", None)
    if channels is not None and (pixels.dim() != 4 or pixels.shape[1] != channels):
        raise ValueError(f"The images have the shape {tuple(pixels.shape[1:])}, and the model takes ({channels}, height, width).")
    size = getattr(config, "image_size", None) if hasattr(config, "patch_size") else None  # others take any size
    if size is not None:
        wanted = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        if tuple(pixels.shape[2:]) != wanted:
            raise ValueError(
                f"The images are {pixels.shape[2]} x {pixels.shape[3]}, and the model takes {wanted[0]} x {wanted[1]}. Resize "
                "them, or give images and the model's image processor."
            )
    count = getattr(config, "num_labels", None)
    if labels is not None and count and config.model_type != "torch" and int(labels.max()) >= count:
        raise ValueError(f"A label is {int(labels.max())}, and the model has {count} classes (0 to {count - 1}).")
