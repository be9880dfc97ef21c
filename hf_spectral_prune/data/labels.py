"""Labels as data sets name them -> the numbers, or vectors of 0 and 1, that the model's head knows them by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from datasets import Dataset, IterableDataset
from transformers import PreTrainedConfig

from ..utils.words import named

Source = TypeVar("Source")
# Of every row: a class number, a value, or a vector of 0 and 1.
Labels = list[int] | list[float] | list[list[float]]

# Names that say nothing: those of a config that was given none, and plain numbers.
_NO_NAME = re.compile(r"(label_)?\d+", re.IGNORECASE)


def folded(name: object) -> str:
    """A name as it is compared: without regard to case, and to whether its words are joined by spaces, dashes or underscores."""
    return re.sub(r"[\s_-]+", "_", str(name).strip()).casefold()


def label_ids(names: Sequence[str], config: PreTrainedConfig | None) -> list[int]:
    """The model's id of every class of a data set, by name; by number where one side has no names.

    Args:
        names: of the classes in the data set's order, as a `ClassLabel` feature has them.
        config: of the model; its `label2id` has the other names.

    Raises:
        ValueError: both have names, and one of the data set's is none of the model's (names it).
    """
    known = getattr(config, "label2id", None) or {}
    _check_one_numbering(config)
    exact = {str(name): number for name, number in known.items()}
    near = {folded(name): number for name, number in known.items()}
    found = [exact.get(name, near.get(folded(name))) for name in names]
    if None not in found:
        return [int(number) for number in found if number is not None]
    if _nameless(names) or _nameless(known):
        return list(range(len(names)))
    strange = names[found.index(None)]
    raise ValueError(
        f"The data set's labels are {_listed(names)}, the model's are {_listed(known)}: `{strange}` is none of those, and "
        "by number they may mean something else. Rename the data set's labels, or correct the model's `label2id`."
    )


def _check_one_numbering(config: PreTrainedConfig | None) -> None:
    """Checks that both tables of a config, of which one names predictions and the other reads labels, say the same."""
    names: dict[object, str] = getattr(config, "id2label", None) or {}
    for name, number in (getattr(config, "label2id", None) or {}).items():
        if name in names.values() and names.get(number) not in (name, None):
            raise ValueError(
                f"The model's `label2id` says that `{name}` is {number}, and its `id2label` that {number} is `{names[number]}`. "
                "Correct the one that is wrong in the model's config."
            )


def _nameless(names: Iterable[object]) -> bool:
    return all(_NO_NAME.fullmatch(str(name).strip()) for name in names)


def _listed(names: Iterable[object]) -> str:
    shown = [f"`{name}`" for name in names]
    return ", ".join(shown) if len(shown) <= 8 else f"{', '.join(shown[:8])}, ... ({len(shown)})"


def class_names(table: Dataset, column: str) -> list[str] | None:
    """Names of the classes whose numbers a column holds, by itself or in lists; None where they have no names."""
    feature = table.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else list(names)


def with_model_ids(source: Source, config: PreTrainedConfig) -> Source:
    """A table of tokenised rows with the model's ids in place of its own, where its labels have names; anything else as it is.

    Raises:
        ValueError: see `label_ids`.
    """
    features = source.features if isinstance(source, (Dataset, IterableDataset)) else None
    for column in ("label", "labels"):  # what models and collators read
        names = class_names(source, column) if column in (features or {}) else None
        ids = None if names is None or config.num_labels == 1 else label_ids(names, config)
        if ids is not None and ids != list(range(len(ids))):
            source = _renumbered(source, column, ids)
    return source


def _renumbered(table: Dataset | IterableDataset, column: str, ids: list[int]) -> Dataset | IterableDataset:
    def renumbered(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [renumbered(part) for part in value]
        return value if value is None or value < 0 else ids[value]  # -100 is no class, nor is a hidden label (-1)

    if isinstance(table, IterableDataset):
        return table.map(lambda row: {column: renumbered(row[column])})
    plain, kind = table.with_format(None), table.format
    changed = plain.remove_columns(column).add_column(column, [renumbered(value) for value in plain[column]])
    return changed.with_format(kind["type"], kind["columns"], kind["output_all_columns"], **kind["format_kwargs"])


def read_labels(table: Dataset, label_column: str, config: PreTrainedConfig) -> Labels:
    """The labels of all rows: a class number each, a value for a regression, or num_labels floats of 0 and 1 where a row may have
    several (`problem_type` `multi_label_classification`, or a column of lists).

    Args:
        label_column: a column; or several with 0 and 1, one a label, joined by commas.

    Raises:
        ValueError: no such column, or a label that is missing or that the model does not have (names the row).
    """
    names = [label_column] if label_column in table.column_names else [part.strip() for part in label_column.split(",")]
    for name in names:
        if name not in table.column_names:
            raise ValueError(
                f"`label_column` is {name!r}, but the data set has no such column: {named(table.column_names, most=8)}."
            )
    if len(names) > 1:
        return _columns(table, names, config)
    values, classes = list(table[label_column]), class_names(table, label_column)
    if config.problem_type == "multi_label_classification" or any(isinstance(value, (list, tuple)) for value in values):
        return _vectors(values, label_column, classes, config)
    if config.num_labels == 1:
        return [_number(value, index, label_column) for index, value in enumerate(values)]
    ids = None if classes is None else label_ids(classes, config)
    return [_class(value, index, label_column, config, ids) for index, value in enumerate(values)]


def _columns(table: Dataset, names: list[str], config: PreTrainedConfig) -> list[list[float]]:
    """Rows of 0 and 1 (num_labels,) of a column for each label, in the model's order."""
    count = config.num_labels or 0
    ids = label_ids(names, config)
    if sorted(ids) != list(range(count)):
        raise ValueError(
            f"`label_column` names {len(names)} columns, but the model has {config.num_labels} labels. Name one for each."
        )
    columns = [list(table[names[ids.index(number)]]) for number in range(count)]
    rows = []
    for index, values in enumerate(zip(*columns, strict=True)):
        if any(value not in (0, 1) for value in values):
            raise ValueError(
                f"Row {index} has the labels {list(values)} in {_listed(names)}. Give 0 or 1 in each of these columns."
            )
        rows.append([float(value) for value in values])
    return rows


def _vectors(values: list[Any], column: str, classes: list[str] | None, config: PreTrainedConfig) -> list[list[float]]:
    """Vectors of 0 and 1 (num_labels,) from lists: of such vectors, of class numbers, or of names."""
    count = config.num_labels or 0
    if config.problem_type not in (None, "multi_label_classification"):
        raise ValueError(
            f"`{column}` holds lists of labels, but the model's `problem_type` is `{config.problem_type}`, which takes one label "
            "a row. Name another `label_column`, or another model."
        )
    ids = None if classes is None else label_ids(classes, config)
    lists = [list(value) if isinstance(value, (list, tuple)) else [value] for value in values]
    lists = [[part for part in parts if part is not None or len(parts) == 1] for parts in lists]
    if classes is None and lists and all(len(parts) == count and all(part in (0, 1) for part in parts) for parts in lists):
        return [[float(part) for part in parts] for parts in lists]
    vectors = []
    for index, parts in enumerate(lists):
        if any(isinstance(part, float) and not part.is_integer() for part in parts):
            raise ValueError(
                f"Row {index} has the labels {parts} in `{column}`. Give {count} values of 0 or 1, or numbers or names of labels."
            )
        held = {_class(part, index, column, config, ids) for part in parts}
        vectors.append([float(number in held) for number in range(count)])
    return vectors


def _check_given(value: object, index: int, column: str) -> None:
    # Pandas gives NaN where a column of numbers has a gap, and then turns whole numbers into fractions.
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"Row {index} has no label. Fill in its `{column}`, or leave the row out.")


def _number(value: Any, index: int, column: str) -> float:
    _check_given(value, index, column)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"Row {index} has the label {value!r}, but the model gives one number (a regression). Give numbers."
        ) from None


def _class(value: object, index: int, column: str, config: PreTrainedConfig, ids: list[int] | None = None) -> int:
    """The class number of one label.

    Args:
        ids: the model's id of every number that the data set uses; None where its numbers are the model's.
    """
    count = config.num_labels or 0
    _check_given(value, index, column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool):
        value = int(value)
    if ids is not None and value == -1:
        raise ValueError(f"Row {index} has the label -1: the labels of this split are hidden, as those of test splits often are.")
    if ids is not None and isinstance(value, int) and 0 <= value < len(ids):
        value = ids[value]
    known = {str(name): number for name, number in (config.label2id or {}).items()}
    if isinstance(value, str):
        _check_one_numbering(config)
    near = {folded(name): number for name, number in known.items()}
    found = value if isinstance(value, int) else known.get(str(value), near.get(folded(value), value))
    if isinstance(found, str) and found.strip().lstrip("-").isdigit():
        found = int(found)
    if not isinstance(found, int) or not 0 <= found < count:
        raise ValueError(
            f"Row {index} has the label {value!r}, but the model has {count} labels: {', '.join(sorted(known))} or 0 to "
            f"{count - 1}. Correct the data or choose another `label_column`."
        )
    return found
