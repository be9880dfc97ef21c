"""Which column is read as text, and how chats read: by the field's usual names and the chat template, or the user is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from conftest import refused, tiny_model
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.columns import column_kinds, text_columns
from hf_spectral_prune.data.items import described
from hf_spectral_prune.data.sources import load_texts
from hf_spectral_prune.data.texts import build_calibration

TEMPLATE = "{% for m in messages %}{{ '<s> ' if m['role'] == 'user' else '</s> ' }}{{ m['content'] }} {% endfor %}"


@pytest.fixture
def chatty(tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer whose template begins a user's turn by token 1 and the assistant's by token 2."""
    backend = tokenizer.backend_tokenizer
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3")
    made.chat_template = TEMPLATE
    return made


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CHAT = [user("w5 w6"), assistant("w7")]
SHAREGPT = [{"from": "human", "value": "w5 w6"}, {"from": "gpt", "value": "w7"}]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"id": "a", "text": "b", "source": "c"}, ("text",)),
        ({"Text": "b", "url": "c"}, ("Text",)),
        ({"sentence": "b", "label": 1}, ("sentence",)),
        ({"messages": CHAT, "source": "smol"}, ("messages",)),
        ({"id": "identity_1", "conversations": SHAREGPT}, ("conversations",)),
        ({"prompt": "a", "prompt_id": "b", "messages": CHAT}, ("messages",)),
        ({"text": "written out", "messages": CHAT}, ("text",)),
        ({"prompt": "a", "completion": "b", "id": "c"}, ("prompt", "completion")),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, ("prompt", "completion")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("prompt", "chosen")),
        ({"prompt": "a", "chosen": CHAT, "rejected": CHAT}, ("chosen",)),
        ({"chosen": "a", "rejected": "b"}, ("chosen",)),
    ],
)
def test_the_usual_columns_are_taken(row, columns):
    assert text_columns(column_kinds([row])) == columns
    assert text_columns(column_kinds([row], Dataset.from_list([row]).features)) == columns


@pytest.mark.parametrize(
    "row",
    [
        {"source": "smol-magpie"},
        {"doc_id": "w5 w6", "tokens": ["w5", "w6"]},
        {"id": "a", "content": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"question": "a", "answer": "b"},
        {"prompt": "a", "rejected": CHAT},
        {"title": "a"},
    ],
)
def test_columns_that_say_too_little_are_asked_for(row):
    strings = [f"`{name}`" for name, value in row.items() if isinstance(value, str)]
    refused(lambda: text_columns(column_kinds([row])), "Which column holds the text? Set `text_column`", ", ".join(strings))
    named = next(name for name, value in row.items() if isinstance(value, str))
    assert text_columns(column_kinds([row]), named) == (named,)


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": CHAT, "source": "smol"}],
        [{"conversations": SHAREGPT}],
        [{"prompt": "w5 w6", "completion": "w7"}],
        [{"prompt": [user("w5 w6")], "chosen": [assistant("w7")], "rejected": [assistant("w9")]}],
        [{"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT]}],
        [{"messages": [{**turn, "content": [turn["content"]]} for turn in CHAT]}],
        [{"messages": [{**turn, "content": {"text": turn["content"]}} for turn in CHAT]}],
        [CHAT],
    ],
)
def test_chats_are_written_by_the_template(rows, chatty):
    ids = [1, 5, 6, 2, 7]
    for source in (rows, Dataset.from_list(rows)) if isinstance(rows[0], dict) else (rows,):
        [batch] = build_calibration(source, chatty, num_samples=1, packing=False)
        assert batch["input_ids"].tolist() == [ids]
        [packed] = build_calibration(list(source) * 4, chatty, num_samples=2, max_seq_length=10)
        assert packed["input_ids"].tolist() == [ids * 2] * 2


def test_chats_without_a_template_are_refused_in_one_line(tokenizer, chatty):
    for source in ([CHAT], [{"messages": CHAT}], [{"prompt": "w5", "completion": "w6"}], Dataset.from_list([{"messages": CHAT}])):
        refused(lambda source=source: build_calibration(source, tokenizer), "no chat template")
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    refused(lambda: build_calibration([CHAT], chatty), "user, assistant", "roles must alternate")


def test_special_tokens_that_a_template_wrote_are_not_written_again(chatty):
    from tokenizers.processors import TemplateProcessing

    chatty.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    try:
        [batch] = build_calibration([CHAT], chatty, num_samples=1, packing=False)
        assert batch["input_ids"].tolist() == [[1, 5, 6, 2, 7]]
    finally:
        chatty.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])


def test_the_column_and_the_beginning_of_its_first_row_are_told(chatty):
    rows = [{"id": "x", "text": None}, {"id": "y", "text": "w5 w6\nw7 " * 20}]
    words = described(Dataset.from_list(rows), chatty)
    assert words.startswith("The text is read from column `text`; its first row begins: 'w5 w6 w7 w5")
    assert "(by the chat template)" in described([{"messages": CHAT}], chatty)
    assert described(["plain"], chatty) is None


def test_the_command_line_says_which_column_it_read(tmp_path: Path, tokenizer, monkeypatch, capsys):
    from hf_spectral_prune.cli.main import main

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tiny_model().save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    words = " ".join(f"w{3 + index % 90}" for index in range(60))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"id": f"i{n}", "text": words}) + "\n" for n in range(40)))
    flags = ["--model_name_or_path", str(tmp_path / "m"), "--calibration_file", str(tmp_path / "t.jsonl")]
    flags += ["--max_seq_length", "32", "--num_calibration_samples", "4", "--streaming", "True"]
    assert main(["score", *flags]) == 0
    assert "column `text`; its first row begins: 'w3 w4 w5" in capsys.readouterr().err
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"source": words}) + "\n" for n in range(40)))
    assert main(["score", *flags]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cria")]
    assert "Which column holds the text" in line and "`source`" in line


def test_whatever_users_have_at_hand_becomes_batches(tokenizer, chatty):
    texts = [" ".join(f"w{3 + (7 * row + column) % 90}" for column in range(40)) for row in range(32)]
    table = Dataset.from_dict({"text": texts})
    rows = table.map(lambda row: tokenizer(row["text"], truncation=True, max_length=40))
    ids = torch.tensor(rows["input_ids"][:])

    class MapStyle(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": ids[index], "label": 0}

    sources = {
        "tokenised": rows,
        "loader": DataLoader(rows.with_format("torch"), batch_size=4),
        "batch": tokenizer(texts, truncation=True, max_length=40, return_tensors="pt"),
        "map style": MapStyle(),
        "tensors": list(ids),
        "frame": pandas.DataFrame({"text": texts}),
        "generator": (text for text in texts),
        "tuple": tuple(texts),
        "dicts": [{"text": text} for text in texts],
        "chats": [[user(text)] for text in texts],
    }
    for name, source in sources.items():
        args = SpectralPruningArguments(target_reduction=0.1, criterion="energy", allocation="proportional", disable_tqdm=True)
        pruner = SpectralPruner(tiny_model(), args, source if name != "batch" else dict(source), processing_class=chatty)
        assert pruner.calibration is not None and pruner.calibration.num_tokens >= 8 * 40, name


def test_files_give_the_columns_of_chats(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "t.jsonl").write_text(json.dumps({"source": "x", "messages": CHAT}) + "\n")
    assert load_texts(tmp_path / "t.jsonl").column_names == ["messages"]
