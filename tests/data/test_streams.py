"""Streams are read from their start and no further than needed, and long texts are tokenised no further either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import VOCABULARY, refused, tiny_model
from datasets import IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.blocks import drawn, tokenise
from hf_spectral_prune.data.for_model import check_ids, read_data
from hf_spectral_prune.data.sources import load_table, load_texts
from hf_spectral_prune.data.texts import build_calibration

ROWS = 30_000


class Counted:
    """A stream of rows, and how many of them were asked for."""

    def __init__(self, make: Any) -> None:
        self.drawn, self._make = 0, make
        self.stream = IterableDataset.from_generator(self._rows)

    def _rows(self) -> Iterator[Any]:
        for index in range(ROWS):
            self.drawn = max(self.drawn, index + 1)
            yield self._make(index)


def words(index: int, count: int = 20) -> str:
    return " ".join(f"w{3 + (7 * index + place) % 90}" for place in range(count))


def ids(index: int) -> dict[str, Any]:
    return {"input_ids": [3 + (7 * index + place) % 90 for place in range(16)]}


def rows_of(data: Any) -> list[list[int]]:
    return [row for batch in data for row in batch["input_ids"].tolist()]


@pytest.mark.parametrize("packing", [True, False])
def test_texts_of_a_stream_are_drawn_from_the_first_eight_times_as_many(packing, tokenizer):
    counted = Counted(lambda index: {"id": str(index), "text": words(index)})
    options = {"max_seq_length": 20, "packing": packing}
    data = build_calibration(counted.stream, tokenizer, num_samples=8, **options)
    assert data.num_sequences == 8 and counted.drawn < 200
    assert data.protocol["shuffle"] is True and data.protocol["seed"] == 42
    found = rows_of(data)
    assert rows_of(build_calibration(counted.stream, tokenizer, num_samples=8, **options)) == found
    assert rows_of(build_calibration(counted.stream, tokenizer, num_samples=8, seed=1, **options)) != found
    # Drawn without replacement, in the order of the text, and not only from its beginning.
    every = rows_of(build_calibration(counted.stream, tokenizer, num_samples=64, shuffle=False, **options))
    places = [every.index(row) for row in found]
    assert places == sorted(set(places)) and places[-1] > 16
    assert every[0] == [3 + place for place in range(20)]


def test_rows_of_a_stream_are_drawn_and_the_first_on_request():
    counted = Counted(ids)
    data = build_calibration(counted.stream, num_samples=8)
    assert data.num_sequences == 8 and counted.drawn < 70
    assert rows_of(data) != [ids(index)["input_ids"] for index in range(8)]
    counted.drawn = 0
    data = build_calibration(counted.stream, num_samples=8, shuffle=False)
    assert rows_of(data) == [ids(index)["input_ids"] for index in range(8)] and counted.drawn < 12


def test_a_draw_takes_every_item_equally_often():
    seen = torch.zeros(40)
    for seed in range(400):
        for item in drawn(iter(range(40)), 10, seed):
            seen[item] += 1
    assert float((seen - 100).abs().max()) < 40  # five standard deviations
    assert drawn(iter(range(3)), 10, 0) == [0, 1, 2]


def test_shards_of_a_stream_are_taken_in_random_order_one_at_a_time(tokenizer):
    def text(index: int) -> str:
        # None of w30 to w39, which the tokenizer splits: "w3" is its unknown token.
        return " ".join(f"w{40 + (5 * index + place) % 53}" for place in range(4))

    def ids_of(index: int) -> list[int]:
        return rows_of(build_calibration([text(index)], tokenizer, max_seq_length=4))[0]

    stream = datasets.Dataset.from_list([{"text": text(index)} for index in range(64)]).to_iterable_dataset(num_shards=8)
    starts = set()
    for seed in range(6):
        [row] = rows_of(build_calibration(stream, tokenizer, num_samples=1, max_seq_length=32, seed=seed))
        shard = next(at for at in range(0, 64, 8) if row[:4] == ids_of(at))
        assert row[4:8] == ids_of(shard + 1)
        starts.add(shard)
    assert len(starts) > 2


def test_an_evaluation_reads_a_thousand_rows_of_a_stream(tokenizer):
    for make in (ids, lambda index: {"text": words(index, 600)}):
        counted = Counted(make)
        data = read_data(counted.stream, tokenizer, tiny_model(), SpectralPruningArguments(), "eval_dataset")
        assert data.num_sequences == 1000 and counted.drawn < 1100


def test_a_generator_is_read_lazily(tokenizer):
    read = []

    def texts() -> Iterator[str]:
        for index in range(ROWS):
            read.append(index)
            yield words(index)

    assert build_calibration(texts(), tokenizer, num_samples=4, max_seq_length=20).num_sequences == 4
    assert len(read) < 200
    refused(lambda: build_calibration(iter([]), tokenizer), "source is empty")


@pytest.mark.parametrize("make", [ids, lambda index: {"text": words(index, 200)}])
def test_a_recovery_trains_on_a_stream(make, tokenizer, tmp_path, batches):
    counted = Counted(make)
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none"}
    given = {"calibration_dataset": batches, "eval_dataset": batches, "processing_class": tokenizer}

    def pruner(**training: Any) -> SpectralPruner:
        args = SpectralPruningArguments(
            output_dir=str(tmp_path / "out"), recovery="full", disable_tqdm=True, training_args=training, target_reduction=0.1
        )
        return SpectralPruner(tiny_model(), args, **given, train_dataset=counted.stream)

    refused(lambda: pruner(), "`train_dataset` is a stream", "`max_steps`")
    made = pruner(**training)
    made.recover()
    assert made.recovered is not None and made.recovered.metrics["train_loss"] > 0
    assert 0 < counted.drawn < 1000


def test_files_and_folders_stream(tmp_path: Path, monkeypatch, tokenizer):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": words(index)}) + "\n" for index in range(100)))
    datasets.Dataset.from_list([{"text": words(index)} for index in range(100)]).save_to_disk(tmp_path / "saved")
    for source in ({"calibration_file": tmp_path / "t.jsonl"}, {"dataset_name": str(tmp_path / "saved")}):
        stream = load_texts(**source, streaming=True)
        assert isinstance(stream, IterableDataset)
        data = build_calibration(stream, tokenizer, num_samples=2, max_seq_length=20)
        assert set(map(tuple, rows_of(data))) <= {
            tuple(row) for row in rows_of(build_calibration(stream, tokenizer, num_samples=100, max_seq_length=20))
        }
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert isinstance(load_table(tmp_path / "t.jsonl"), datasets.Dataset)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 95), min_size=1, max_size=400), st.integers(1, 6), st.sampled_from(["right", "left"]))
def test_a_long_text_is_cut_as_if_all_of_it_had_been_tokenised(word_ids, length, side):
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, truncation_side=side)
    text = "   ".join(f"w{index}" for index in word_ids)
    whole = tokenizer(text, truncation=True, max_length=length)["input_ids"]
    assert tokenise([text], tokenizer, length)["input_ids"] == whole


def test_a_long_text_is_not_tokenised_whole(tokenizer):
    seen = []

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, *texts, **kwargs):
            seen.extend(map(len, texts))
            return super().__call__(*texts, **kwargs)

    counting = Counting(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    build_calibration([words(0, 500_000)], counting, max_seq_length=32, packing=False)
    assert sum(seen) < 10_000


def test_ids_beyond_the_embedding_name_the_tokenizer_and_the_sizes(tokenizer):
    model = tiny_model(vocab_size=90)
    data = build_calibration([words(0, 2000)], tokenizer, num_samples=4, max_seq_length=32)
    refused(lambda: check_ids(model, data, tokenizer), "The token id 92 (`w92`)", "with 96 tokens", "has 90 rows")
    fine = build_calibration([{"input_ids": list(range(3, 40))}])
    for datasets_given in ({"calibration_dataset": data}, {"calibration_dataset": fine, "eval_dataset": data}):
        made = lambda given=datasets_given: SpectralPruner(model, **given, processing_class=tokenizer)  # noqa: E731
        refused(made, "beyond the model's embedding")
    check_ids(tiny_model(), data, tokenizer)
    refused(lambda: check_ids(model, build_calibration([{"input_ids": torch.tensor([[95]])}])), "The token id 95 is beyond")
