"""Mixtures: every source gives its share of the rows, in one order drawn at random; bad mixtures are one line."""

from __future__ import annotations

import pytest
from conftest import VOCABULARY, refused
from hypothesis import given
from hypothesis import strategies as st

from hf_spectral_prune.data.mixtures import build_mixture, mixture_of, rows_by_weight
from hf_spectral_prune.data.texts import build_calibration


def texts(first: int, number: int = 400) -> list[str]:
    """Texts of one word, so that a row tells its source."""
    return [f"w{first}" for _ in range(number)]


def words_of(data) -> list[int]:
    return [int(row[0]) for batch in data for row in batch["input_ids"]]


def test_each_source_gives_its_share_in_one_random_order(tokenizer):
    written = build_calibration([{"input_ids": [9] * 4} for _ in range(50)])
    sources = {"one": (texts(5), 0.5), "two": (texts(7), 0.3), "self": (written, 0.2)}
    data = build_mixture(sources, tokenizer, num_samples=20, max_seq_length=4, batch_size=8, seed=1)
    found = words_of(data)
    assert [found.count(word) for word in (5, 7, 9)] == [10, 6, 4]
    assert [len(batch["input_ids"]) for batch in data] == [8, 8, 4]
    assert all(len(set(found[start : start + 10])) == 3 for start in (0, 10))  # every stretch is a mix
    assert data.protocol["source"] == "one (10 rows), two (6 rows), self (4 rows)"
    assert data.protocol["parts"]["two"]["seed"] == 1 and data.protocol["num_texts"] is None
    again = build_mixture(sources, tokenizer, num_samples=20, max_seq_length=4, batch_size=8, seed=1)
    assert words_of(again) == found
    assert words_of(build_mixture(sources, tokenizer, num_samples=20, max_seq_length=4, seed=2)) != found


def test_rows_of_unequal_length_are_padded_and_masked(tokenizer):
    parts = {"long": (["w5 w6 w7 w8"] * 6, 1), "short": (["w9"] * 6, 1)}
    data = build_mixture(parts, tokenizer, num_samples=12, packing=False)
    assert data.num_tokens == 6 * 4 + 6


@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=5), st.integers(2000, 5000))
def test_shares_are_within_one_row_of_their_weights_and_sum_up(weights, number):
    named = {str(index): weight for index, weight in enumerate(weights)}
    rows = rows_by_weight(named, number)
    assert sum(rows.values()) == number
    assert all(abs(rows[name] - number * weight / sum(weights)) < 1 + 1e-6 for name, weight in named.items())


def test_a_mixture_is_read_from_its_text(tmp_path):
    file = tmp_path / "notes:1.jsonl"
    file.write_text("{}")
    assert mixture_of("self") == {"self": 1.0}
    assert mixture_of("c4:0.5, wiki:.3,self:2") == {"c4": 0.5, "wiki": 0.3, "self": 2.0}
    assert mixture_of(f"{file}:1,owner/name:3") == {str(file): 1.0, "owner/name": 3.0}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("slef", ["`slef`", "Did you mean `self`?"]),
        ("c4,self", ["part `c4`", "weight"]),
        ("c4:0.5,self:no", ["part `self:no`"]),
        ("c4:0.5,self:-1", ["part `self:-1`"]),
        ("c4:inf", ["part `c4:inf`"]),
        ("self:1,self:2", ["`self` twice"]),
        (":1", ["part `:1`"]),
        ("", ["names ``"]),
    ],
)
def test_bad_mixtures_are_one_line(text, parts):
    refused(lambda: mixture_of(text), *parts)


def test_a_weight_too_small_for_a_row_is_told():
    refused(lambda: rows_by_weight({"c4": 1.0, "self": 0.001}, 16), "`self`", "none of 16 rows")
    refused(lambda: rows_by_weight({"c4": 0.0}, 16), "weight of `c4` is 0")


def test_the_digest_is_of_rows_whatever_the_batches():
    rows = [{"input_ids": [3 + (index + place) % (VOCABULARY - 3) for place in range(4 + index % 3)]} for index in range(12)]
    digests = {build_calibration(rows, batch_size=size, num_samples=12).digest for size in (1, 5, 12)}
    assert len(digests) == 1
    assert build_calibration(rows[:-1], num_samples=12).digest not in digests
