"""Where calibration text comes from: files, data sets, and the manual that comes with Python."""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from pathlib import Path

import pandas
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from ..utils.types import Options
from ..utils.words import first_line, shortened
from .blocks import drawn
from .columns import text_columns
from .items import Stream, table_kinds

TEXT = ".txt"
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
# What pandas takes for a missing value in a column of any kind.
_MISSING = [
    "",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "-1.#IND",
    "-1.#QNAN",
    "-NaN",
    "-nan",
    "1.#IND",
    "1.#QNAN",
    "<NA>",
    "N/A",
    "NA",
    "NULL",
]
_MISSING += ["NaN", "None", "n/a", "nan", "null"]
_BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
_ONE_SOURCE = "Give exactly one of `calibration_file` and `dataset_name`."


def load_texts(
    calibration_file: str | Path | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    text_column: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset | list[str]:
    """Reads raw text from a local file, a Hub data set or a local data set folder; give one of the first two.

    Args:
        calibration_file: .txt (one text with its line breaks), .jsonl, .json or .csv, all also as .gz, or .parquet.
        dataset_name: name on the Hub, or a folder of data files or of `Dataset.save_to_disk`.
        dataset_split: split of `dataset_name`, slices as in "train[:1000]" included. Files have no splits.
        text_column: column that holds the text or the chats; see `columns.text_reader` for what goes without it.
        streaming: read rows as they are asked for, so that a large data set is not downloaded whole.

    Returns:
        One text for a .txt file, else a data set with the columns of the text alone; one with `input_ids`, or a stream, stays
        as it is.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: both or none of the sources given, unknown file type or column, unreadable or empty data.
    """
    if calibration_file is not None and kind_of(calibration_file) == TEXT:
        if dataset_name is not None:
            raise ValueError(_ONE_SOURCE)
        return [_read_text(_existing(calibration_file))]
    dataset = load_table(calibration_file, dataset_name, dataset_config_name, dataset_split, streaming)
    if isinstance(dataset, IterableDataset) or "input_ids" in dataset.column_names:
        return dataset
    return dataset.select_columns(list(text_columns(table_kinds(dataset), text_column)))


def load_table(
    calibration_file: str | Path | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str = "train",
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """A file or data set as `load_texts` names them, with all its columns; .tsv files (tab-separated) too.

    Returns:
        A `Dataset`, or an `IterableDataset` where it is `streaming`.

    Raises:
        FileNotFoundError, ValueError: see `load_texts`.
    """
    if (calibration_file is None) == (dataset_name is None):
        raise ValueError(_ONE_SOURCE)
    if calibration_file is not None:
        dataset = _read_table(_existing(calibration_file), streaming)
    else:
        assert dataset_name is not None
        dataset = _read_dataset(dataset_name, dataset_config_name, dataset_split, streaming)
    if not streaming and len(dataset) == 0:
        raise ValueError(f"The calibration data set `{calibration_file or dataset_name}` has no rows. Give one with text.")
    return dataset


def kind_of(file: str | Path) -> str:
    """The ending that says how a file is read, in small letters: `.txt` of `BOOK.TXT` and of `book.txt.gz`."""
    path = Path(str(file).lower())
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _existing(file: str | Path) -> Path:
    if not Path(file).is_file():
        raise FileNotFoundError(f"`calibration_file` `{file}` does not exist. Check the path.")
    return Path(file)


def _read_text(path: Path) -> str:
    # "utf-8-sig" also drops the byte-order mark some editors put first, which would become a token.
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except _BROKEN_GZIP as error:
        raise ValueError(f"`{path}` is no whole gzip file ({error}). Get it again.") from None
    if not text.strip():
        raise ValueError(f"The calibration file `{path}` is empty. Give a file with text.")
    return text


def _read_table(path: Path, streaming: bool) -> Dataset | IterableDataset:
    suffix = kind_of(path)
    if suffix not in READERS:
        raise ValueError(f"`calibration_file` `{path}` is not of a known type. Give .txt, .jsonl, .json, .csv, .tsv or .parquet.")
    # `datasets` gives no rows at all, and no columns to name, for an empty file: it raises from deep inside.
    if path.stat().st_size == 0:
        raise ValueError(f"The calibration file `{path}` is empty. Give a file with text.")
    try:
        # Quotation marks in tab-separated text are text.
        options: Options = {"sep": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
        if suffix == ".csv" and (separator := _other_separator(path)):
            options = {"sep": separator}
        if READERS[suffix] == "csv":
            options |= {"na_values": _missing_values(path, options), "keep_default_na": False}
        return load_dataset(READERS[suffix], data_files=str(path), split="train", streaming=streaming, **options)
    except Exception as error:  # the readers of pandas, pyarrow and json, each with errors of its own
        cause = error.__cause__ or error
        reason = first_line(cause)
        if isinstance(cause, OSError) and cause.filename is not None and Path(cause.filename) != path:
            raise ValueError(
                f"The cache of `datasets` cannot be written ({shortened(reason)}). Set `HF_DATASETS_CACHE` to a folder that can."
            ) from None
        raise ValueError(
            f"`{path}` cannot be read as {suffix[1:]}: {shortened(reason).rstrip('.')}. Correct the file, or get it again."
        ) from None


def _other_separator(path: Path) -> str | None:
    """What stands between the columns of a .csv file in place of commas, as spreadsheets write it in many countries."""
    names = list(pandas.read_csv(path, nrows=0).columns)
    found = [separator for separator in (";", "\t", "|") if separator in names[0]] if len(names) == 1 else []
    return found[0] if len(found) == 1 else None


def _missing_values(path: Path, options: Options) -> dict[str, list[str]]:
    """By column, the words that stand for a missing value: none in text, where `NA` and `null` are words like others.

    As `datasets` does, the first 10,000 rows tell which columns are text.
    """
    head = pandas.read_csv(path, nrows=10_000, **options)
    kinds = {name: pandas.api.types.infer_dtype(head[name], skipna=True) for name in head.columns}
    return {name: _MISSING for name, kind in kinds.items() if kind != "string"}


def _read_dataset(name: str, config_name: str | None, split: str, streaming: bool) -> Dataset | IterableDataset:
    folder = Path(name)
    if not any((folder / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        return _load_dataset(name, config_name, split, streaming)
    saved = load_from_disk(name)
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"`dataset_split` is {split!r}, but {name} has the splits {sorted(saved)}. Choose one of them.")
        saved = saved[split]
    elif split not in ("train", str(saved.split)):
        raise ValueError(
            f"`{name}` is one table without splits, and the split `{split}` is asked for. Leave it out, or save a `DatasetDict`."
        )
    return saved.to_iterable_dataset() if streaming else saved


def _load_dataset(name: str, config_name: str | None, split: str, streaming: bool) -> Dataset | IterableDataset:
    try:
        return load_dataset(name, config_name, split=split, streaming=streaming)
    except Exception as error:  # of the Hub, of builders and of readers
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        reason = first_line(cause)
        raise ValueError(
            f"`dataset_name` `{name}` (`dataset_config_name` {config_name}, split `{split}`) cannot be read: "
            f"{shortened(reason)}. Check its name, configuration and split, and the connection."
        ) from None


def some_rows(rows: Dataset | IterableDataset, number: int, shuffle: bool = True, seed: int = 42) -> Dataset:
    """Rows of a stream as a table: drawn as `build_calibration` draws them, or the first ones; a table stays as it is."""
    if isinstance(rows, Dataset):
        return rows
    table = Dataset.from_list(drawn(Stream(rows).shuffled(seed), number, seed) if shuffle else list(rows.take(number)))
    if len(table) == 0:
        raise ValueError("The streamed data set has no rows. Give one with text.")
    return table.cast(rows.features) if rows.features is not None else table


def default_texts() -> tuple[list[str], list[str]]:
    """Calibration and held-out texts that every Python has: the help topics of `pydoc_data`, split by topic.

    A topic's side follows from a hash of its name, so it is the same on every machine and Python version; about a
    quarter of the characters is held out. Many topics repeat parts of a longer one word for word: every paragraph is
    kept once only, in the longest topic that has it, so that nothing held out was seen in calibration.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [(raw, " ".join(raw.split())) for raw in topics[name].split("\n\n")]
        # Short paragraphs (headings, lines such as "For example:") are anybody's and give nothing away.
        text = "\n\n".join(raw for raw, plain in paragraphs if len(plain) < 60 or plain not in seen)
        seen.update(plain for _, plain in paragraphs)
        if 2 * len(text) > len(topics[name]):
            digest = hashlib.sha256(f"held-out/{name}".encode()).digest()
            sides[digest[-1] % 4 == 0][name] = text
    calibration, held_out = ([side[name] for name in sorted(side)] for side in sides)
    return calibration, held_out
