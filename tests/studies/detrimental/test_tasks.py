"""Readers of labelled examples: every layout from small files, one line for whatever is no example, and the draw."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_spectral_prune import Example, examples_from_rows, read_examples
from hf_spectral_prune.studies.detrimental.tasks import LAYOUTS, draw_examples

ROWS = {
    "jsonl": (
        {"prompt": "Two and two are", "choices": ["four", "five", "six"], "label": 0},
        ("Two and two are", ("four", "five", "six"), 0, "Two and two are four"),
    ),
    "boolq": (
        {"question": "is snow white", "answer": True, "passage": "Snow is white."},
        ("Snow is white.\nQuestion: is snow white?\nAnswer:", ("no", "yes"), 1, None),
    ),
    "copa": (
        {"premise": "I slept. ", "choice1": "I'd been up.", "choice2": "The sun rose.", "question": "cause", "label": 1},
        ("I slept because", ("I'd been up.", "the sun rose."), 1, "I slept because I'd been up."),
    ),
    "sst2": ({"sentence": "a fine film ", "label": 1}, ("Review: a fine film\nSentiment:", ("negative", "positive"), 1, None)),
    "sst5": (
        {"sentence": "dull", "label": 0},
        ("Review: dull\nSentiment:", ("terrible", "bad", "okay", "good", "great"), 0, "Review: dull\nSentiment: terrible"),
    ),
    "mmlu": (
        {"question": "1 + 1?", "subject": "sums", "choices": ["1", "2", "3", "4"], "answer": 1},
        ("Question: 1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", ("A", "B", "C", "D"), 1, None),
    ),
    "xnli": (
        {"premise": "He ran.", "hypothesis": "He moved.", "label": 0},
        ("He ran.\nDoes it follow that: He moved.\nAnswer (yes, maybe or no):", ("yes", "maybe", "no"), 0, None),
    ),
}


def test_every_layout_is_tried():
    assert set(ROWS) == set(LAYOUTS)


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet", "rows", "datasets"])
def test_rows_of_every_layout_become_examples(task, ending, tmp_path):
    row, (prompt, choices, label, text) = ROWS[task]
    file = tmp_path / f"data{ending}"
    if ending == ".jsonl":
        file.write_text(f"\ufeff{json.dumps(row)}\n\n{json.dumps(row)}\n")  # a byte-order mark, a blank line
    elif ending == ".jsonl.gz":
        file.write_bytes(gzip.compress(f"{json.dumps(row)}\n{json.dumps(row)}".encode()))
    elif ending == ".parquet":
        Dataset.from_list([row, row]).to_parquet(str(file))
    if ending in ("rows", "datasets"):
        found = examples_from_rows([row, row] if ending == "rows" else Dataset.from_list([row, row]), task)
    else:
        found = read_examples(file, task)
    assert found == [Example(prompt, choices, label)] * 2
    assert text is None or found[0].text(0) == text


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz", ".csv"])
def test_tables_of_text_have_labels_of_digits(ending, tmp_path):
    text = (
        'sentence\tlabel\na "quoted" film\t1\nanother\t0\n'
        if "tsv" in ending
        else 'sentence,label\n"a ""quoted"" film",1\nanother,0\n'
    )
    (tmp_path / f"data{ending}").write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    first, second = read_examples(tmp_path / f"data{ending}", "sst2")
    assert first == Example('Review: a "quoted" film\nSentiment:', ("negative", "positive"), 1)
    assert second.label == 0


def test_letters_and_other_names_of_public_copies_are_read():
    assert examples_from_rows([{**ROWS["mmlu"][0], "answer": "C"}], "mmlu")[0].label == 2
    assert examples_from_rows([{"text": "dull", "label": 0}], "sst5")[0].prompt == "Review: dull\nSentiment:"


def test_one_space_stands_between_prompt_and_choice():
    texts = [Example(prompt, ("b", "c"), 0).text(0) for prompt in ("a", "a ", "a\n")]
    assert texts == ["a b", "a b", "a\nb"]
    assert Example("a", (" b", "c"), 0).text(0) == "a b"


GOOD = {"prompt": "p", "choices": ["a", "b"], "label": 0}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "choices": ["a", "b"]}, "has no label (`label`)"),
        (GOOD | {"label": None}, "has no label (`label`)"),
        (GOOD | {"label": -1}, "hidden"),
        (GOOD | {"label": ""}, "has no label"),
        (GOOD | {"label": 2}, "label 2, which is none of its choices: 0 to 1"),
        (GOOD | {"label": True}, "label True"),
        (GOOD | {"label": 0.0}, "label 0.0"),
        (GOOD | {"choices": ["a"]}, "a choice list of 1. An example needs at least 2"),
        (GOOD | {"choices": []}, "a choice list of 0"),
        (GOOD | {"choices": "ab"}, "Give it a list of texts"),
        (GOOD | {"choices": ["a", " "]}, "not blank"),
        (GOOD | {"choices": ["a", 3]}, "the choice 3"),
        (GOOD | {"choices": ["a", "a"]}, "same choice twice"),
        (GOOD | {"prompt": " "}, "not blank"),
        (GOOD | {"prompt": 3}, "`prompt` is 3"),
        ({"choices": ["a", "b"], "label": 0}, "has no `prompt`. A row of the `jsonl` layout has `prompt`, `choices`, `label`"),
        ([1, 2], "holds a list"),
        ("{broken", "is not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_row_that_is_no_example_is_told_with_file_and_line(row, words, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(ValueError, match="line 2") as raised:
        read_examples(file)
    message = str(raised.value)
    assert words in message and str(file) in message and "\n" not in message


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("copa", ROWS["copa"][0] | {"question": "why"}, "has the question `why`, not `cause` or `effect`"),
        ("copa", ROWS["copa"][0] | {"premise": 3}, "a value of another type"),
        ("boolq", {"question": "q", "passage": "p"}, "has no label (`answer`)"),
        ("boolq", ROWS["boolq"][0] | {"answer": "perhaps"}, "label 'perhaps'"),
        ("mmlu", ROWS["mmlu"][0] | {"answer": "E"}, "label 'E'"),
        ("mmlu", ROWS["mmlu"][0] | {"choices": ["1"]}, "a choice list of 1"),
        ("xnli", ROWS["xnli"][0] | {"label": 3}, "0 to 2"),
        ("sst2", {"words": "x", "label": 1}, "has no `sentence`"),
    ],
)
def test_a_row_of_another_layout_is_told(task, row, words):
    with pytest.raises(ValueError, match="the rows, row 1") as raised:
        examples_from_rows([row], task)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.jsonl", b"", "is empty"),
        ("data.jsonl", b"\n\n", "is empty"),
        ("data.tsv", b"sentence\tlabel\n", "is empty"),
        ("data.tsv", b"sentence\tlabel\ngood\n", "line 2 has 1 cells, but the header has 2"),
        ("data.csv", b"sentence,label\ngood\n", "line 2 has another number of cells"),
        ("data.jsonl", b"\xff\xfe", "not UTF-8"),
        ("data.jsonl.gz", b"this is not gzip", "broken"),
        ("data.jsonl.gz", gzip.compress(b'{"sentence": "a", "label": 1}\n' * 500, mtime=0)[:-20], "broken"),
        ("data.parquet", b"this is not parquet", "cannot be read as parquet"),
        ("data.xlsx", b"x", "no known type"),
        ("data.gz", b"x", "no known type"),
    ],
)
def test_a_broken_file_is_told_in_one_line(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as raised:
        read_examples(tmp_path / name, "sst2")
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(("choices", "label"), [(("a",), 0), (("a", "b"), 2), (("a", "a"), 0)])
def test_an_example_made_by_hand_is_checked_too(choices, label):
    with pytest.raises(ValueError, match="an example has"):
        Example("p", choices, label)


def test_missing_files_and_layouts_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        read_examples(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="Did you mean `boolq`"):
        read_examples(tmp_path / "absent.jsonl", "bolq")


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_a_draw_splits_the_examples_with_labels_in_turn(labels, share, seed):
    examples = [Example(f"p{index}", ("a", "b", "c", "d"), label) for index, label in enumerate(labels)]
    number = max(1, int(share * len(examples)))
    drawn, rest = draw_examples(examples * 2, number, seed)
    assert len(drawn) == number and sorted([*drawn, *rest], key=str) == sorted(examples, key=str)
    counts = {label: sum(example.label == label for example in drawn) for label in set(labels)}
    most = max(counts.values())
    for label, count in counts.items():  # a label is behind only where all its examples are drawn
        assert count >= most - 1 or count == labels.count(label)
    assert draw_examples(examples, number, seed) == (drawn, rest)


def test_a_draw_of_too_many_is_told():
    with pytest.raises(ValueError, match="3 examples are asked for, but there are only 1"):
        draw_examples([Example("p", ("a", "b"), 0)] * 5, 3, 0)


def test_a_random_draw_takes_labels_as_they_come():
    examples = [Example(f"question {index}", ("no", "yes"), int(index >= 90)) for index in range(100)]
    labels = {draw: [example.label for example in draw_examples(examples, 20, 0, draw)[0]] for draw in ("balanced", "random")}
    assert sum(labels["balanced"]) == 10 and sum(labels["random"]) < 8
    assert draw_examples(examples, 20, 0, "random") == draw_examples(examples, 20, 0, "random")
