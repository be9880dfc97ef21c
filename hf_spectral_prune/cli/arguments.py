"""Which model and which data a command reads, each a slice of the options that is handed to those who need it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..arguments import ModelArguments, _field
from ..utils.option_values import json_option
from ..utils.types import Json


def _of_networks(name: str) -> str:
    return f"`{name}` is for plain PyTorch networks. Set `network_class` too, or leave it out."


def _is_inner_folder(name: str) -> bool:
    """Whether it is a folder here, and not written like a path already."""
    return not name.startswith((".", "~")) and not Path(name).is_absolute() and Path(name).is_dir()


@dataclass
class NetworkArguments(ModelArguments):
    """Which model to load: one of transformers, or a plain PyTorch network by its class.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    network_class: str | None = _field(
        None,
        "Class of a plain PyTorch network, as `package.module:Class`; `model_name_or_path` is then a folder that its "
        "`save_pretrained` wrote, or the file of a state dict (.safetensors, .pt, .pth, .th, .bin).",
    )
    network_args: Json | str | None = _field(None, "Arguments to create this class with, as JSON, e.g. '{\"depth\": 56}'.")

    def __post_init__(self) -> None:
        self.network_args = json_option("network_args", self.network_args)
        if self.network_class is None:
            if self.network_args:
                raise ValueError(_of_networks("network_args"))
            return
        module, _, network = self.network_class.partition(":")
        if not (module and network):
            raise ValueError(f"`network_class` is `{self.network_class}`. Write it like `package.module:Class`.")
        if self.dtype not in ("auto", "float32"):
            raise ValueError(f"`dtype` is `{self.dtype}`, and plain networks are pruned in float32. Leave it out.")


@dataclass
class DataArguments:
    """Which data a command calibrates, measures and recovers on.

    Attributes:
        num_eval_texts: default of `num_eval_samples` for raw text.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    num_eval_texts: ClassVar[int] = 64

    calibration: str = _field(
        "dataset",
        "Calibration text: `dataset` (the file or data set that other flags name), `self` (sampled from the model itself), "
        "`python_docs` (the manual that comes with Python), `c4` or `wiki` (C4 and WikiText-103 from the Hub, streamed); or "
        "several sources, files and data sets too, with their shares of the rows: `c4:0.5,notes.jsonl:0.3,self:0.2`.",
    )
    calibration_file: str | None = _field(
        None, "Text file to calibrate on: .txt, .jsonl, .json, .csv, .tsv or .parquet; text formats may be gzipped."
    )
    dataset_name: str | None = _field(None, "Data set to calibrate on: its name on the Hub, or a folder.")
    dataset_config_name: str | None = _field(None, "Configuration of that data set.")
    dataset_split: str = _field("train", "Split of that data set.")
    streaming: bool = _field(
        False, "Read the rows of a data set or table as they are needed, from its start, instead of downloading it whole."
    )
    text_column: str | None = _field(
        None,
        "Column that holds the text, or chats (written by the chat template). By default `text`; `messages` or `conversations`; "
        "`prompt` with `completion` or `chosen`; or the only column of strings, if it is called `sentence` or similar.",
    )
    image_dir: str | None = _field(None, "Folder of images to calibrate on, with one subfolder per class (vision models).")
    image_column: str | None = _field(None, "Column of `dataset_name` that holds the images; by default its only image column.")
    eval_image_dir: str | None = _field(None, "Folder of images to measure on; by default some calibration images are held out.")
    tensors_file: str | None = _field(
        None, "Inputs of a plain network to calibrate on: .npz or .safetensors with `pixel_values` (N, ...) and `labels` (N,)."
    )
    eval_tensors_file: str | None = _field(
        None, "The same kind of file to measure on; by default some rows of `tensors_file` are held out."
    )
    num_calibration_samples: int = _field(128, "Number of calibration sequences or images.")
    max_seq_length: int = _field(512, "Length of a sequence in tokens, for calibration and evaluation.")
    calibration_batch_size: int = _field(8, "Number of sequences or images per batch.")
    packing: bool = _field(True, "Join the texts into one stream and cut it into full blocks; otherwise pad each text by itself.")

    eval_file: str | None = _field(
        None,
        "Text file to measure perplexity on before and after, in blocks from its start (or text by text, see `packing`); by "
        "default what is held out of the calibration text.",
    )
    eval_split: str | None = _field(None, "Split of `dataset_name` to measure on instead of a file, e.g. `test`.")
    recovery_file: str | None = _field(
        None, "Text file to recover on; by default the calibration text, without what is held out."
    )
    num_recovery_samples: int = _field(1024, "Maximum number of sequences to recover on.")
    num_eval_samples: int | None = _field(
        None,
        "Number of evaluation sequences: 64 by default (16 for `cria ablate`), 1,000 for labelled texts and images; 0 measures "
        "nothing.",
    )
    label_column: str | None = _field(
        None,
        "Column with the label of a text, for models that classify texts; labels with names are matched by name. If a text may "
        "have several labels: a column of lists, or columns of 0 and 1 joined by commas. For encoder-decoders: the column with "
        "the text that the model should say.",
    )
    text_pair_column: str | None = _field(None, "Column with the second text, for models that classify pairs.")
    metric: str | None = _field(
        None,
        "Metric of labelled texts: accuracy (without it) or f1; with `trust_remote_code` also the Hub name or path of a metric.",
    )

    def __post_init__(self) -> None:
        if self.dataset_name is not None and _is_inner_folder(self.dataset_name):
            # The reports name the data so, and a folder `a/b` would read like a data set of the Hub.
            self.dataset_name = f"./{self.dataset_name}"
        for name in ("num_calibration_samples", "num_recovery_samples", "calibration_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.max_seq_length < 2:
            raise ValueError(f"`max_seq_length` is {self.max_seq_length}; it must be at least 2.")
        if self.num_eval_samples is None:
            images = self.image_dir or self.eval_image_dir or self.image_column or self.tensors_file
            self.num_eval_samples = 1000 if self.label_column or images else self.num_eval_texts
        if self.num_eval_samples < 0:
            raise ValueError(f"`num_eval_samples` is {self.num_eval_samples}; it must not be negative.")
        if self.calibration_file and self.dataset_name:
            raise ValueError("Both `calibration_file` and `dataset_name` are set. Give one of them.")
        self._check_table()
        if self.eval_split is not None:
            self._check_eval_split()
        if self.image_dir and (self.dataset_name or self.calibration_file):
            raise ValueError("Both `image_dir` and another source of calibration data are set. Give one of them.")
        tables = self.calibration_file or self.dataset_name or self.eval_file or self.image_dir
        if self.label_column is not None and not tables:
            raise ValueError("`label_column` needs a table of texts. Set `calibration_file` or `dataset_name`.")
        if self.metric == "":
            raise ValueError("`metric` is empty. Name one, such as accuracy or f1, or leave it out.")
        for name in ("metric", "text_pair_column"):
            if getattr(self, name) is not None and self.label_column is None:
                raise ValueError(f"`{name}` is for labelled texts. Set `label_column` too, or leave it out.")

    def _check_table(self) -> None:
        """Options of a data set or a table where there is none."""
        for name, default in (("dataset_config_name", None), ("dataset_split", "train")):
            if getattr(self, name) != default and not self.dataset_name:
                raise ValueError(f"`{name}` is for `dataset_name`, which is not set. Set it, or leave `{name}` out.")
        if self.calibration in ("self", "python_docs") and not (self.dataset_name or self.eval_file or self.recovery_file):
            for name in ("text_column", "streaming"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` is for data sets and tables, and none is named. Name one, or leave it out.")

    def _check_eval_split(self) -> None:
        if not self.dataset_name:
            raise ValueError(
                f"`eval_split` `{self.eval_split}` is a split of `dataset_name`, which is not set. Set it, or `eval_file`."
            )
        if self.eval_file is not None:
            raise ValueError("Both `eval_file` and `eval_split` are set. Give one of them.")
        if self.eval_split == self.dataset_split:
            raise ValueError(
                f"`eval_split` and `dataset_split` are both `{self.eval_split}`, so the model would be measured on the text that "
                "it is calibrated on. Name another split, or leave `eval_split` out."
            )


@dataclass
class RunArguments(DataArguments, NetworkArguments):
    """The model and the data of one command: what the command line needs beside `SpectralPruningArguments`.

    Attributes:
        unread: names of fields that are no flags, because the command reads them nowhere.

    Raises:
        ValueError: values that cannot work, alone or together; says what to set instead.
    """

    unread: ClassVar[frozenset[str]] = frozenset()

    resume_from_checkpoint: str | None = _field(None, "Checkpoint folder of an interrupted run to continue from, or `latest`.")

    def __post_init__(self) -> None:
        NetworkArguments.__post_init__(self)
        DataArguments.__post_init__(self)
        if self.network_class is None:
            for name in ("tensors_file", "eval_tensors_file"):
                if getattr(self, name):
                    raise ValueError(_of_networks(name))
            return
        if not self.tensors_file:
            raise ValueError("A plain network is traced and calibrated with its inputs. Set `tensors_file`.")
        if self.calibration != "dataset":
            raise ValueError(
                f"`calibration` is `{self.calibration}`, and a plain network is calibrated with `tensors_file`. Leave it out."
            )
        others = ("calibration_file", "dataset_name", "image_dir", "eval_file", "eval_image_dir", "recovery_file")
        for name in (*others, "label_column", "gguf_file"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` is for models of transformers, and `network_class` names a plain network. Leave it out."
                )


@dataclass
class StudyRunArguments(RunArguments):
    """The same for the studies: models of text; a study that was interrupted continues by its folder."""

    unread = frozenset(
        {"resume_from_checkpoint", "network_class", "network_args", "tensors_file", "eval_tensors_file"}
        | {"image_dir", "image_column", "eval_image_dir"}
    )


def check_recovery_is_asked_for(run: RunArguments, args: Any, option: str, *, asked: bool) -> None:
    """Tells of options of a recovery where there is none: what was meant by them would not be done.

    Args:
        args: what has `recovery_args` and `training_args`.
        option: the one that asks for it.
    """
    named = {"recovery_file": run.recovery_file, "recovery_args": args.recovery_args, "training_args": args.training_args}
    for name, value in named.items():
        if value and not asked:
            raise ValueError(f"`{name}` is for a recovery, and `{option}` is `none`. Set `{option}` too, or leave it out.")
