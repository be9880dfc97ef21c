"""Tables of labelled texts: fields that are empty or look missing, labels that are missing, and nothing tokenised in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import tiny_encoder
from transformers import PreTrainedTokenizerFast

from hf_spectral_prune.data.labelled import load_labelled
from hf_spectral_prune.data.texts import build_calibration

CONFIG = tiny_encoder("bert", num_labels=2, id2label={0: "even", 1: "odd"}, label2id={"even": 0, "odd": 1}).config


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows_of(tmp_path: Path, tokenizer: Any, content: str, name: str = "t.tsv", config: Any = CONFIG, **options: Any) -> Any:
    (tmp_path / name).write_text(content)
    source = {"calibration_file": tmp_path / name}
    return load_labelled(source, config, tokenizer, label_column="label", **options)


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_texts_that_look_missing_are_text_and_empty_ones_have_no_tokens(tmp_path, tokenizer, name):
    separator = "," if name.endswith("csv") else "\t"
    fields = [("text", "label"), ("w5 w6", "odd"), ("NA", "even"), ("null w7", "odd"), ("", "even")]
    rows = rows_of(tmp_path, tokenizer, "".join(f"{separator.join(line)}\n" for line in fields), name)
    assert [row["input_ids"] for row in rows] == [[5, 6], [3], [3, 7], []]  # 3 is the unknown word
    assert [row["labels"] for row in rows] == [1, 0, 1, 0]
    [batch] = build_calibration(rows, tokenizer, num_samples=4)
    assert batch["labels"].tolist() == [1, 0, 1]


def test_null_texts_and_pairs_count_as_empty(tmp_path, tokenizer):
    lines = '{"other": "w9", "text": null, "label": 1}\n{"other": null, "text": "w5", "label": 0}\n'
    rows = rows_of(tmp_path, tokenizer, lines, "t.jsonl", text_pair_column="other", text_column="text")
    assert [row["input_ids"] for row in rows] == [[9], [5]]
    lines = '{"other": "w9", "text": "w5", "label": 1}\n'
    rows = rows_of(tmp_path, tokenizer, lines, "u.jsonl", text_pair_column="other", text_column="text")
    assert rows[0]["input_ids"] == [5, 9]


@pytest.mark.parametrize("label", ["", "NA"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_missing_label_names_its_row(tmp_path, tokenizer, label, outputs):
    config = tiny_encoder("bert", num_labels=outputs).config
    with pytest.raises(ValueError, match="Row 2 has no label") as caught:
        rows_of(tmp_path, tokenizer, f"text\tlabel\nw5\t1\nw6\t0\nw7\t{label}\n", config=config)
    assert "\n" not in str(caught.value) and "`label`" in str(caught.value)
    with pytest.raises(ValueError, match="Row 1 has no label"):
        rows_of(tmp_path, tokenizer, "text\tlabel\nw5\todd\nw6\t\n")


def test_a_pair_column_of_numbers_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="`text_pair_column` is 'other'"):
        rows_of(tmp_path, tokenizer, "text\tother\tlabel\nw5\t7\t1\n", text_pair_column="other")


def test_only_rows_that_are_drawn_are_tokenised(tmp_path, tokenizer):
    seen = []

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, text, *others, **kwargs):
            seen.append(text)
            return super().__call__(text, *others, **kwargs)

    counting = Counting(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    lines = "".join(f"w{3 + index % 90} w{3 + index // 90}\t{index % 2}\n" for index in range(500))
    rows = rows_of(tmp_path, counting, f"text\tlabel\n{lines}")
    assert len(rows) == 500 and not seen
    data = build_calibration(rows, counting, num_samples=10)
    assert data.num_sequences == 10 and len(seen) < 20
    assert rows.select([4, 7])[1] == rows[7]
