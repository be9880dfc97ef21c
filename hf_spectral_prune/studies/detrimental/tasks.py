"""Labelled multiple-choice examples: their file format, and the layouts of public data sets with the wording of each."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

from ...utils.words import did_you_mean, in_a_line, listed

# A row of a data set or file, and what a layout reads from it: prompt, choices, label.
Row = Mapping[str, Any]
Draw = Literal["balanced", "random"]
Fields = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Example:
    """One question with its choices.

    Attributes:
        prompt: what the model reads.
        choices: texts that may follow, at least two. One space is put between prompt and choice where neither has any.
        label: index of the right choice.
        where: the file and line it came from, for messages.

    Raises:
        ValueError: a blank prompt, fewer than two choices, the same one twice, or a label that is none of them.
    """

    prompt: str
    choices: tuple[str, ...]
    label: int
    where: str = field(default="an example", compare=False)

    def __post_init__(self) -> None:
        where, choices = self.where, self.choices
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"{where}: `prompt` is {self.prompt!r}. Give it a text that is not blank.")
        if isinstance(choices, str) or not isinstance(choices, Sequence):
            raise ValueError(f"{where}: `choices` is {choices!r}. Give it a list of texts.")
        if len(choices) < 2:
            raise ValueError(f"{where} has a choice list of {len(choices)}. An example needs at least 2 choices.")
        for choice in choices:
            if not isinstance(choice, str) or not choice.strip():
                raise ValueError(f"{where} has the choice {choice!r}. Every choice must be a text that is not blank.")
        if len(set(choices)) < len(choices):
            raise ValueError(f"{where} has the same choice twice. No score can tell them apart.")
        if isinstance(self.label, bool) or not isinstance(self.label, int) or not 0 <= self.label < len(choices):
            raise ValueError(f"{where} has the label {self.label!r}, which is none of its choices: 0 to {len(choices) - 1}.")
        object.__setattr__(self, "choices", tuple(choices))

    def text(self, choice: int) -> str:
        """The prompt with one of its choices."""
        blank = self.prompt[-1:].isspace() or self.choices[choice][:1].isspace()
        return self.prompt + ("" if blank else " ") + self.choices[choice]


@dataclass(frozen=True)
class Layout:
    """How the rows of a data set become examples.

    Attributes:
        fields: the columns that a row must have.
        wording: the prompt and the choices, in words, for reports.
        read: makes (prompt, choices, label) of a row; the label is checked later.
        label: the column that holds the label, for messages.
    """

    fields: tuple[str, ...]
    wording: str
    read: Callable[[Row], Fields]
    label: str = "label"


def _plain(row: Row) -> Fields:
    return row["prompt"], row["choices"], row["label"]


def _boolq(row: Row) -> Fields:
    answer = row["answer"]
    label = int(answer) if isinstance(answer, bool) else {"true": 1, "false": 0}.get(str(answer).lower(), answer)
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes"), label


def _copa(row: Row) -> Fields:
    link = {"cause": "because", "effect": "so"}.get(row["question"])
    if link is None:
        raise ValueError(f"has the question `{row['question']}`, not `cause` or `effect`")
    choices = tuple(_continued(row[name]) for name in ("choice1", "choice2"))
    return f"{row['premise'].strip().rstrip('.')} {link}", choices, row["label"]


def _continued(sentence: str) -> str:
    """A sentence as the rest of another: its first letter small, unless it is the word I."""
    first = sentence.split()[0] if sentence.split() else ""
    return sentence if first == "I" or first.startswith("I'") else sentence[:1].lower() + sentence[1:]


def _review(*choices: str) -> Callable[[Row], Fields]:
    def read(row: Row) -> Fields:
        return f"Review: {row['sentence'].strip()}\nSentiment:", choices, row["label"]

    return read


def _mmlu(row: Row) -> Fields:
    letters = "ABCDEFGHIJ"[: len(row["choices"])]
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, row["choices"], strict=True)]
    answer = row["answer"]
    label = letters.index(answer) if isinstance(answer, str) and len(answer) == 1 and answer in letters else answer
    return "\n".join([f"Question: {row['question'].strip()}", *lines, "Answer:"]), tuple(letters), label


def _xnli(row: Row) -> Fields:
    prompt = f"{row['premise'].strip()}\nDoes it follow that: {row['hypothesis'].strip()}\nAnswer (yes, maybe or no):"
    return prompt, ("yes", "maybe", "no"), row["label"]


LAYOUTS = {
    "jsonl": Layout(("prompt", "choices", "label"), "as given", _plain),
    "boolq": Layout(("question", "passage", "answer"), "PASSAGE / Question: QUESTION? / Answer: no|yes", _boolq, "answer"),
    "copa": Layout(
        ("premise", "choice1", "choice2", "question", "label"), "PREMISE because|so CHOICE, with a small letter", _copa
    ),
    "sst2": Layout(("sentence", "label"), "Review: SENTENCE / Sentiment: negative|positive", _review("negative", "positive")),
    "sst5": Layout(
        ("sentence", "label"),
        "Review: SENTENCE / Sentiment: terrible|bad|okay|good|great",
        _review("terrible", "bad", "okay", "good", "great"),
    ),
    "mmlu": Layout(("question", "choices", "answer"), "Question: QUESTION / A. CHOICE / ... / Answer: A|B|C|D", _mmlu, "answer"),
    "xnli": Layout(
        ("premise", "hypothesis", "label"),
        "PREMISE / Does it follow that: HYPOTHESIS / Answer (yes, maybe or no): yes|maybe|no",
        _xnli,
    ),
}


def read_examples(path: str | Path, task: str = "jsonl") -> list[Example]:
    """Reads a labelled file in one of the `LAYOUTS`: .jsonl, .tsv (no quoting) or .csv, all also as .gz, or .parquet.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unknown layout or type of file, an empty or broken one, or a row that is no example (names its line).
    """
    layout_of(task)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The task file `{path}` is no file. Check the path.")
    return _examples(_file_rows(path), task, str(path))


def examples_from_rows(rows: Iterable[Row], task: str = "jsonl", name: str = "the rows") -> list[Example]:
    """Makes examples of rows (dicts, or a `datasets.Dataset`) in one of the `LAYOUTS`.

    Raises:
        ValueError: see `read_examples`; rows are counted from 1.
    """
    return _examples(((f"row {index}", row) for index, row in enumerate(rows, start=1)), task, name)


def layout_of(task: str) -> Layout:
    """One of the `LAYOUTS` by name.

    Raises:
        ValueError: there is none of that name.
    """
    if task not in LAYOUTS:
        known = listed(LAYOUTS)
        raise ValueError(f"`task` is `{task}`, which is no known layout.{did_you_mean(task, LAYOUTS)} Known: {known}.")
    return LAYOUTS[task]


def _examples(rows: Iterable[tuple[str, Row]], task: str, name: str) -> list[Example]:
    layout = layout_of(task)
    examples = [_example(row, layout, task, f"{name}, {place}") for place, row in rows]
    if not examples:
        raise ValueError(f"{name} is empty: it holds no example. Give a labelled file in the `{task}` layout.")
    return examples


def _example(row: Row, layout: Layout, task: str, where: str) -> Example:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}. Give dicts with the columns of the `{task}` layout.")
    if "sentence" in layout.fields and "sentence" not in row and "text" in row:
        row = {**row, "sentence": row["text"]}  # the name of that column in some copies of the data
    missing = [column for column in layout.fields if row.get(column) is None]
    if missing == [layout.label]:
        raise ValueError(f"{where} has no label (`{layout.label}`). Every example must be labelled.")
    if missing:
        fields = listed(layout.fields)
        raise ValueError(f"{where} has no `{missing[0]}`. A row of the `{task}` layout has {fields}.")
    try:
        prompt, choices, label = layout.read(row)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is no row of the `{task}` layout: it {_words(error)}.") from None
    if isinstance(label, str) and label.strip().lstrip("-").isdigit():
        label = int(label)  # tables of text have no other numbers
    if label in (-1, ""):
        raise ValueError(f"{where} has no label (it is {label!r}, as in test sets whose labels are hidden).")
    return Example(prompt, choices, label, where)


def _words(error: Exception) -> str:
    text = in_a_line(error)
    return text if isinstance(error, ValueError) else f"holds a value of another type ({text})"


def _file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(line, row) of a file; a broken one is told with the line."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
        return
    readers = {".jsonl": _json_rows, ".tsv": _tsv_rows, ".csv": _csv_rows}
    if suffix not in readers:
        raise ValueError(f"The task file `{path}` is of no known type. Give .jsonl, .tsv or .csv, also as .gz, or .parquet.")
    line = 0
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        # "utf-8-sig" drops the byte-order mark that some editors put first.
        with opener(path, "rt", encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as file:
            for line, row in readers[suffix](file):
                yield f"line {line}", row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is broken behind line {line}: {error}. Get the file anew.") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no table behind line {line}: {error}. Correct that line.") from None
    except _BadLine as error:
        raise ValueError(f"{path}, line {error.line} {error}") from None


class _BadLine(Exception):
    """A line that is no row; its words follow the place."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def _json_rows(file: Iterable[str]) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise _BadLine(line, f"is not JSON ({error.msg}). Every line must be one JSON object.") from None
        if not isinstance(row, dict):
            raise _BadLine(line, f"holds a {type(row).__name__}. Every line must be one JSON object.")
        yield line, row


def _tsv_rows(file: Iterable[str]) -> Iterator[tuple[int, Row]]:
    names: list[str] = []
    for line, text in enumerate(file, start=1):
        cells = text.rstrip("\r\n").split("\t")
        if not names:
            names = cells
        elif len(cells) != len(names):
            raise _BadLine(line, f"has {len(cells)} cells, but the header has {len(names)}. Separate cells by one tab.")
        else:
            yield line, dict(zip(names, cells, strict=True))


def _csv_rows(file: Iterable[str]) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(file)
    for row in reader:
        if None in row or None in row.values():
            raise _BadLine(reader.line_num, "has another number of cells than the header.")
        yield reader.line_num, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = load_dataset("parquet", data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = in_a_line(error.__cause__ or error)
        raise ValueError(f"{path} cannot be read as parquet: {reason}.") from None
    yield from ((f"row {index}", row) for index, row in enumerate(rows, start=1))


def draw_examples(
    examples: Sequence[Example], number: int, seed: int, draw: Draw = "balanced"
) -> tuple[list[Example], list[Example]]:
    """Draws examples without replacement, and gives the others too; both in a random order, by the seed.

    Repeated examples count once.

    Args:
        draw: "balanced" takes labels in turn as far as they last, so that of ten yes-no questions five have each answer: the
            most frequent answer alone must not look like a good model. "random" takes labels as they come.

    Raises:
        ValueError: there are fewer examples.
    """
    unique = list(dict.fromkeys(examples))
    if number > len(unique):
        raise ValueError(f"{number} examples are asked for, but there are only {len(unique)} that differ. Ask for fewer.")
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: dict[int, int] = {}
    turns = []
    for place, index in enumerate(order):
        label = unique[index].label
        turns.append((seen.get(label, 0) if draw == "balanced" else 0, place))
        seen[label] = seen.get(label, 0) + 1
    chosen = {place for _, place in sorted(turns)[:number]}
    drawn = [unique[index] for place, index in enumerate(order) if place in chosen]
    return drawn, [unique[index] for place, index in enumerate(order) if place not in chosen]
