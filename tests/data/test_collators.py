"""A collator that is given makes the batches of calibration, evaluation and recovery alike, as in Trainer."""

from __future__ import annotations

import pytest
import torch
from conftest import random_batch, refused, tiny_encoder, tiny_model
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.for_model import read_data

ARGS = SpectralPruningArguments(num_calibration_samples=6, calibration_batch_size=4, max_seq_length=8)
ROWS = [{"input_ids": row.tolist(), "extra": index} for index, row in enumerate(random_batch(10, 12)["input_ids"])]


def doubled(rows: list[dict]) -> dict[str, torch.Tensor]:
    assert all(set(row) == {"input_ids"} for row in rows)  # columns that the model does not take are gone
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": 2 * ids}


@pytest.mark.parametrize(("name", "sizes"), [("calibration_dataset", [4, 2]), ("eval_dataset", [4, 4, 2])])
def test_rows_go_through_the_collator(name, sizes):
    data = read_data(Dataset.from_list(ROWS), None, tiny_model(), ARGS, name, doubled)
    assert [len(batch["input_ids"]) for batch in data] == sizes
    assert all(torch.equal(batch["labels"], 2 * batch["input_ids"]) for batch in data)


def test_blocks_of_text_are_masked_alike_each_time(tokenizer):
    model, texts = tiny_encoder("bert", task="ForMaskedLM"), [" ".join(f"w{3 + index % 90}" for index in range(200))]
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", mask_token="w3")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    first, second = (read_data(texts, tokenizer, model, ARGS, "calibration_dataset", collator) for _ in range(2))
    assert first.batches[0]["input_ids"].shape == (4, 8)
    assert bool((first.batches[0]["labels"] != -100).any())
    assert all(torch.equal(one[key], other[key]) for one, other in zip(first, second, strict=True) for key in one)


def test_ready_batches_need_no_collator():
    batch = random_batch()
    data = read_data([batch], None, tiny_model(), ARGS, "calibration_dataset", doubled)
    assert torch.equal(data.batches[0]["input_ids"], batch["input_ids"])


def test_a_collator_that_makes_no_tensors_is_told():
    args = SpectralPruningArguments(disable_tqdm=True)
    refused(
        lambda: SpectralPruner(tiny_model(), args, ROWS, data_collator=lambda rows: {"input_ids": rows}), "`data_collator` must"
    )
