"""The table of inputs: which row a command's options name."""

from __future__ import annotations

import pytest
from conftest import refused

from hf_spectral_prune.cli import inputs
from hf_spectral_prune.cli.arguments import RunArguments

LABELLED = {"label_column": "label", "calibration_file": "rows.csv"}
NETWORK = {"network_class": "package.module:Class", "tensors_file": "inputs.npz"}


def run_of(**options) -> RunArguments:
    return RunArguments(**{"model_name_or_path": "model"} | options)


@pytest.mark.parametrize(
    ("options", "images", "row"),
    [
        ({"calibration_file": "text.txt"}, False, inputs.TEXTS),
        (LABELLED, False, inputs.LABELLED_TEXTS),
        ({"image_dir": "images"}, True, inputs.IMAGES),
        ({"dataset_name": "owner/images", "label_column": "label"}, True, inputs.IMAGES),
        (NETWORK, None, inputs.TENSORS),
        ({"gguf_file": "model.gguf"}, None, inputs.TEXTS),  # these are language models
    ],
)
def test_each_kind_of_input_has_its_row(options, images, row, monkeypatch):
    """The config is read only where the options leave it open."""
    monkeypatch.setattr(inputs, "reads_images", lambda run: pytest.fail("read a config") if images is None else images)
    assert inputs.inputs_of(run_of(**options)) is row


def test_what_the_model_cannot_read_is_refused_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr(inputs, "reads_images", lambda run: False)
    refused(lambda: inputs.inputs_of(run_of(image_dir="images")), "`image_dir`", "`model` reads text")
    refused(lambda: inputs.text_inputs_of(run_of(**NETWORK)), "`network_class`")
