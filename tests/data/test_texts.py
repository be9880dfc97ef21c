"""What calibration data promises: the right tokens, the right mask, a stated protocol, and clear errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import tiny_model
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data import blocks as data_module
from hf_spectral_prune.data import texts as texts_module
from hf_spectral_prune.data.generated import self_generated
from hf_spectral_prune.data.items import texts_of
from hf_spectral_prune.data.named_files import check_text_file
from hf_spectral_prune.data.sources import default_texts, load_table, load_texts
from hf_spectral_prune.data.texts import CalibrationData, build_calibration

LETTERS = "abcdefghijklmnopqrstuvwxyz \n"


def make_tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
    """One token a character, so that what a stream should be can be written down by hand."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special_tokens)


TOKENIZER = make_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def ids_of(text: str) -> list[int]:
    return [4 + LETTERS.index(character) for character in text]


def rows_of(data: CalibrationData) -> list[list[int]]:
    return [row.tolist() for batch in data for row in batch["input_ids"]]


def make_model(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config: dict[str, Any] = (
        {"vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2} | sizes | changes
    )
    return LlamaForCausalLM(LlamaConfig(**config))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ---- load_texts


def test_text_file_is_one_text_with_its_line_breaks(tmp_path: Path) -> None:
    text = "one\n\n two \nthree\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write(text)
    assert load_texts(tmp_path / "a.txt") == load_texts(str(tmp_path / "a.txt.gz")) == [text]


def table(**options: Any) -> Dataset:
    loaded = load_texts(**options)
    assert isinstance(loaded, Dataset)
    return loaded


def write_table(path: Path, texts: list[str]) -> None:
    dataset = Dataset.from_dict({"number": list(range(len(texts))), "sentence": texts})
    kind = path.name.split(".")[1]
    if kind == "parquet":
        dataset.to_parquet(path)
    elif kind == "csv":
        dataset.to_csv(path.with_name("plain.csv"))
    else:
        dataset.to_json(path.with_name(f"plain.{kind}"), lines=kind == "jsonl")
    if kind != "parquet":
        content = path.with_name(f"plain.{kind}").read_bytes()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet", "t.jsonl.gz", "t.csv.gz"])
def test_table_files_give_their_only_string_column(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name, ["first", "second\nline"])
    loaded = table(calibration_file=tmp_path / name)
    assert loaded.column_names == ["sentence"] and loaded["sentence"][:] == ["first", "second\nline"]


@pytest.mark.parametrize(("name", "separator"), [("t.csv", ","), ("t.tsv", "\t"), ("t.csv.gz", ";"), ("t.csv", "\t")])
def test_words_for_missing_values_stay_text_and_are_gaps_among_numbers(tmp_path: Path, name: str, separator: str) -> None:
    texts, numbers = ["NA", "null", "", "None", "plain"], ["NA", "1.5", "", "nan", "2"]
    lines = [separator.join(fields) for fields in [("text", "number"), *zip(texts, numbers, strict=True)]]
    content = "\n".join([*lines, ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    loaded = load_table(tmp_path / name)
    assert loaded["text"][:] == texts
    assert loaded["number"][:] == [None, 1.5, None, None, 2.0]
    assert table(calibration_file=tmp_path / name).column_names == ["text"]


def test_text_column_is_preferred_and_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "t", "text": "x"}) + "\n")
    assert table(calibration_file=path).column_names == ["text"]
    assert table(calibration_file=path, text_column="title")["title"][:] == ["t"]


def test_local_folders_load_as_data_sets(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    saved = Dataset.from_dict({"text": ["c"]})
    saved.save_to_disk(tmp_path / "one")
    DatasetDict(train=saved, test=Dataset.from_dict({"text": ["d"]})).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="one table without splits, and the split `test` is asked for"):
        load_texts(dataset_name=str(tmp_path / "one"), dataset_split="test")  # the rows to calibrate on, told as a test set
    assert table(dataset_name=str(tmp_path / "files"), dataset_split="train[:1]")["text"][:] == ["a"]
    assert table(dataset_name=str(tmp_path / "one"))["text"][:] == ["c"]
    assert table(dataset_name=str(tmp_path / "two"), dataset_split="test")["text"][:] == ["d"]
    with pytest.raises(ValueError, match=r"`dataset_split` is 'dev'.*\['test', 'train'\]"):
        load_texts(dataset_name=str(tmp_path / "two"), dataset_split="dev")


def test_tokenised_data_set_keeps_all_its_columns(tmp_path: Path) -> None:
    Dataset.from_dict({"input_ids": [[1, 2]], "labels": [3]}).save_to_disk(tmp_path / "d")
    assert table(dataset_name=str(tmp_path / "d")).column_names == ["input_ids", "labels"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
        ("a.pdf", b"x", r"not of a known type. Give \.txt"),
        ("a.jsonl", b"", "is empty"),
        ("a.json", b"[]", "a.json` cannot be read as json"),
        ("a.jsonl", b'{"text": \n', "cannot be read as jsonl"),
        ("a.jsonl", b'{"q": "x", "a": "y"}\n', r"Which column holds the text\? Set `text_column`. Columns of strings: `q`, `a`"),
        ("a.jsonl", b'{"n": 1}\n', r"Which column holds the text\?.*the columns are `n`"),
    ],
)
def test_unusable_files_give_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_texts(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["A.TXT", "a.Jsonl", "A.CSV"])
def test_the_ending_of_a_file_is_read_without_regard_to_case(tmp_path: Path, name: str) -> None:
    content = {".txt": "b", ".jsonl": '{"text": "b"}\n', ".csv": "text\nb\n"}[Path(name).suffix.lower()]
    (tmp_path / name).write_text(content)
    check_text_file(str(tmp_path / name), "calibration_file")
    found = load_texts(tmp_path / name)
    assert (found if isinstance(found, list) else found["text"][:]) == ["b"]


def test_a_table_without_a_header_is_told_in_a_short_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("".join(f"{'a long text ' * 200},{index}\n" for index in range(3)))
    with pytest.raises(ValueError, match="Which column holds the text") as error:
        load_texts(tmp_path / "a.csv")
    assert len(str(error.value)) < 300


def test_missing_file_and_wrong_column_and_no_source_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`calibration_file` `.*nowhere\.txt` does not exist"):
        load_texts(tmp_path / "nowhere.txt")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"`text_column` is 'sentence'.*: `text`\."):
        load_texts(tmp_path / "a.jsonl", text_column="sentence")
    sources: list[dict[str, Any]] = [{}, {"calibration_file": "a.txt", "dataset_name": "b"}]
    for arguments in sources:
        with pytest.raises(ValueError, match="exactly one of `calibration_file` and `dataset_name`"):
            load_texts(**arguments)


# ---- default_texts


def long_paragraphs(texts: list[str]) -> set[str]:
    paragraphs = {" ".join(paragraph.split()) for text in texts for paragraph in text.split("\n\n")}
    return {paragraph for paragraph in paragraphs if len(paragraph) >= 60}


def test_default_texts_share_no_paragraph_and_a_quarter_is_held_out() -> None:
    calibration, held_out = default_texts()
    assert not long_paragraphs(calibration) & long_paragraphs(held_out)
    sizes = sum(map(len, calibration)), sum(map(len, held_out))
    assert 0.2 < sizes[1] / sum(sizes) < 0.3
    assert sum(sizes) > 300_000
    # Big topics on both sides: the largest of each is a large one of all.
    assert max(map(len, held_out)) > 20_000 and max(map(len, calibration)) > 20_000


def test_default_split_follows_the_topic_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = default_texts()
    assert any("Special method names" in text[:40] for text in before[0])
    assert any("Compound statements" in text[:40] for text in before[1])
    import pydoc_data.topics

    unrelated = {"a new topic": "An unrelated paragraph, long enough to be told from all of the others by its words."}
    monkeypatch.setattr(pydoc_data.topics, "topics", dict(reversed(pydoc_data.topics.topics.items())) | unrelated)
    after = default_texts()
    assert all(set(old) <= set(new) for old, new in zip(before, after, strict=True))
    assert sum(map(len, after)) == sum(map(len, before)) + 1


def test_a_topic_repeated_in_a_longer_one_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import pydoc_data.topics

    part = "This paragraph is repeated, word for word, in a longer topic and in a twin."
    topics = {
        "part": part,
        "twin": part,
        "whole": f"Another paragraph of the longer topic, as long as the first.\n\n{part}",
    }
    monkeypatch.setattr(pydoc_data.topics, "topics", topics)
    assert [*default_texts()[0], *default_texts()[1]] == [topics["whole"]]


# ---- build_calibration: packing


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(LETTERS, max_size=40), min_size=1, max_size=8),
    joiner=st.sampled_from(["\n\n", "", " ", "\n"]),
    piece=st.integers(1, 60),
    length=st.integers(1, 7),
)
def test_packed_blocks_are_the_joined_text_whatever_the_pieces(texts: list[str], joiner: str, piece: int, length: int) -> None:
    stream = ids_of(joiner.join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "_PIECE_CHARACTERS", piece)
        if len(stream) < length:
            with pytest.raises(ValueError, match=f"is {length} but the calibration text has only {len(stream)} tokens"):
                build_calibration(texts, TOKENIZER, max_seq_length=length, joiner=joiner)
            return
        data = build_calibration(texts, TOKENIZER, num_samples=10_000, max_seq_length=length, joiner=joiner)
    full = len(stream) // length
    assert rows_of(data) == [stream[index * length : (index + 1) * length] for index in range(full)]
    assert all(batch["attention_mask"].all() for batch in data)


def test_pieces_break_at_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_PIECE_CHARACTERS", 10)
    text = "abc def\nghi jkl\n\nmno" + "p" * 15
    pieces = list(data_module._pieces([text, "q"], "\n\n"))
    assert pieces == ["abc def\n", "ghi jkl\n\n", "mnoppppppp", "pppppppp\n\n", "q"]
    assert list(data_module._pieces(["0123456789\n"], "")) == ["0123456789", "\n"]


def test_seed_chooses_blocks_without_replacement_and_repeats_itself() -> None:
    texts = [LETTERS[index % 28] * 5 + LETTERS[index // 28] * 5 for index in range(200)]
    options: dict[str, Any] = {"num_samples": 40, "max_seq_length": 10, "joiner": "", "batch_size": 16}
    first, again = (build_calibration(texts, TOKENIZER, seed=1, **options) for _ in range(2))
    other = build_calibration(texts, TOKENIZER, seed=2, **options)
    head = build_calibration(texts, TOKENIZER, shuffle=False, **options)
    every = [ids_of(text) for text in texts]
    assert rows_of(first) == rows_of(again) != rows_of(other)
    places = [every.index(row) for row in rows_of(first)]
    assert places == sorted(set(places)) and len(places) == 40 and places[-1] > 100
    assert rows_of(head) == every[:40]
    assert [len(batch["input_ids"]) for batch in first] == [16, 16, 8]


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_calibration(["abcdefghij"] * 9, TOKENIZER, num_samples=3, max_seq_length=4)
    assert torch.equal(before, torch.get_rng_state())


def test_without_shuffling_no_more_text_is_tokenised_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_PIECE_CHARACTERS", 10)
    seen = []

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, text, **kwargs):
            seen.extend(text)
            return super().__call__(text, **kwargs)

    tokenizer = Counting(tokenizer_object=TOKENIZER.backend_tokenizer)
    build_calibration(["abcde"] * 1000, tokenizer, num_samples=3, max_seq_length=8, shuffle=False)
    assert sum(map(len, seen)) < 200


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(LETTERS, max_size=40), min_size=1, max_size=8), width=st.integers(1, 50))
def test_passages_are_the_whole_text_and_no_longer_than_twice_their_width(texts: list[str], width: int) -> None:
    for source in (texts, Dataset.from_dict({"text": texts})):
        held = texts_of(source, None)
        lengths = held.lengths()
        assert lengths.tolist() == [len(text) for text in texts]
        ends = lengths.cumsum(0)
        number = -(-int(ends[-1]) // width)
        passages = [data_module._passage(held, ends, "", width, index) for index in range(number)]
        assert "".join(passages) == "".join(texts)
        assert all(len(passage) <= 2 * width for passage in passages)
        drawn = list(data_module._drawn_passages(held, lengths, "", width, seed=3))
        assert sorted(drawn) == sorted(passage for passage in passages if passage)


def long_source(kind: str) -> tuple[Any, str]:
    """A text of 100,000 characters (one, many, or a data set) and how its texts are joined."""
    generator = torch.Generator().manual_seed(0)
    letters = "".join(LETTERS[index] for index in torch.randint(26, (100_000,), generator=generator).tolist())
    if kind == "one text":
        return [letters], ""
    rows = [letters[at : at + 7] for at in range(0, len(letters), 7)]
    return (rows, "") if kind == "many texts" else (Dataset.from_dict({"text": rows}), "")


@pytest.mark.parametrize("kind", ["one text", "many texts", "data set"])
def test_of_long_text_only_a_multiple_of_what_is_drawn_is_tokenised(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, text, **kwargs):
            seen.extend(text)
            return super().__call__(text, **kwargs)

    monkeypatch.setattr(data_module, "_PIECE_CHARACTERS", 500)
    monkeypatch.setattr(data_module, "_WHOLE_CHARACTERS", 50_000)
    source, joiner = long_source(kind)
    tokenizer = Counting(tokenizer_object=TOKENIZER.backend_tokenizer, pad_token="<pad>")
    options: dict[str, Any] = {"num_samples": 40, "max_seq_length": 10, "joiner": joiner}
    first = build_calibration(source, tokenizer, seed=1, **options)
    assert 8 * 400 <= sum(map(len, seen)) < 8 * 400 + 9 * 500
    again, other = (build_calibration(source, tokenizer, seed=seed, **options) for seed in (1, 2))
    assert rows_of(first) == rows_of(again) != rows_of(other) and first.num_sequences == 40
    # The blocks are the source's, apart from the few over a seam, and come from all of it.
    stream = "".join(long_source("one text")[0])
    places = [stream.find("".join(LETTERS[number - 4] for number in row)) for row in rows_of(first)]
    found = [place for place in places if place >= 0]
    assert len(found) >= 34 and len(set(found)) == len(found)
    assert min(found) < 25_000 and max(found) > 75_000
    # A larger draw has blocks of the same bounds, so that what is held out can be told in it.
    every = {tuple(row) for row in rows_of(build_calibration(source, tokenizer, seed=1, **(options | {"num_samples": 11_000})))}
    assert all(tuple(row) in every for row in rows_of(first))


@pytest.mark.parametrize("side", ["right", "left"])
def test_of_a_long_text_in_a_row_of_its_own_no_more_is_tokenised_than_fills_the_row(tmp_path: Path, side: str) -> None:
    """A tokenizer keeps some hundred bytes a token of all that it is given, before it truncates."""
    seen: list[int] = []

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, text, **kwargs):
            seen.extend(map(len, [text] if isinstance(text, str) else text))
            return super().__call__(text, **kwargs)

    letters = "".join(
        LETTERS[index] for index in torch.randint(26, (2**21,), generator=torch.Generator().manual_seed(0)).tolist()
    )
    (tmp_path / "long.txt").write_text(letters)
    tokenizer = Counting(tokenizer_object=TOKENIZER.backend_tokenizer, pad_token="<pad>", truncation_side=side)
    source = load_texts(tmp_path / "long.txt")
    data = build_calibration(source, tokenizer, packing=False, num_samples=4, max_seq_length=32)
    assert 32 <= sum(seen) < 4096
    row = letters[:32] if side == "right" else letters[-32:]
    assert rows_of(data) == [ids_of(row)]


def test_unpadded_rows_are_what_they_were_before_padding() -> None:
    for side in ("left", "right"):
        tokenizer = make_tokenizer(padding_side=side, pad_token="<pad>")
        data = build_calibration(["ab", "cdef", "g"], tokenizer, packing=False, num_samples=3, batch_size=3)
        [batch] = data
        rows = [texts_module.unpadded_row({name: value[index] for name, value in batch.items()}) for index in range(3)]
        assert [row["input_ids"].tolist() for row in rows] == [ids_of("ab"), ids_of("cdef"), ids_of("g")]
        assert all(row["attention_mask"].all() for row in rows)


def test_fewer_blocks_than_asked_are_all_used_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(texts_module.logger, "warning", warnings.append)
    data = build_calibration(["abcdefghij"], TOKENIZER, num_samples=8, max_seq_length=3, name="my text")
    assert rows_of(data) == [ids_of("abc"), ids_of("def"), ids_of("ghi")]
    assert warnings == ["`my text` has 3 sequences, and up to 8 were asked for: all are used."]
    build_calibration(["abcdefghij"], TOKENIZER, num_samples=3, max_seq_length=3)
    assert len(warnings) == 1


def test_protocol_is_json_and_states_what_was_done() -> None:
    dataset = Dataset.from_dict({"text": ["abcdefgh", "ijklm"]}, split=datasets.Split.TEST)
    data = build_calibration(dataset, TOKENIZER, num_samples=3, max_seq_length=4, joiner="\n", seed=7, name="letters")
    assert json.loads(json.dumps(data.protocol)) == {
        "source": "letters",
        "split": "test",
        "joiner": "\n",
        "packing": True,
        "max_seq_length": 4,
        "num_samples": 3,
        "shuffle": True,
        "seed": 7,
        "num_texts": 2,
        "num_sequences": 3,
        "num_tokens": 12,
    }
    assert (data.num_sequences, data.num_tokens, len(data)) == (3, 12, 1)


# ---- build_calibration: rows of their own


def test_special_tokens_begin_rows_of_their_own_and_never_the_packed_stream() -> None:
    tokenizer = make_tokenizer(bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    options: dict[str, Any] = {"num_samples": 2, "max_seq_length": 3, "joiner": ""}
    assert rows_of(build_calibration(["abc", "def"], tokenizer, **options)) == [ids_of("abc"), ids_of("def")]
    unpacked = build_calibration(["abc", "def"], tokenizer, packing=False, **options)
    assert rows_of(unpacked) == [[1, *ids_of("ab")], [1, *ids_of("de")]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special_tokens", [{"pad_token": "<pad>"}, {"eos_token": "</s>"}, {}])
def test_unpacked_rows_are_truncated_and_padded_on_the_tokenizers_side(side: str, special_tokens: dict) -> None:
    tokenizer = make_tokenizer(padding_side=side, **special_tokens)
    texts = ["ab", "   \n", "abcdef", "c"]
    data = build_calibration(texts, tokenizer, packing=False, max_seq_length=4, num_samples=3, batch_size=2)
    pad = {"<pad>": 3, "</s>": 2}.get(next(iter(special_tokens.values()), ""), 0)
    padded = [pad, pad, *ids_of("ab")] if side == "left" else [*ids_of("ab"), pad, pad]
    first, second = data
    assert first["input_ids"].tolist() == [padded, ids_of("abcd")]
    assert first["attention_mask"].tolist() == [[0, 0, 1, 1] if side == "left" else [1, 1, 0, 0], [1, 1, 1, 1]]
    assert second["input_ids"].tolist() == [ids_of("c")]
    assert data.num_tokens == data.protocol["num_tokens"] == 7
    assert data.protocol["packing"] is False and data.protocol["joiner"] is None


def test_unpacked_rows_are_chosen_by_seed() -> None:
    texts = [letter * 3 for letter in LETTERS if letter.strip()]
    one, same, other = (
        rows_of(build_calibration(texts, TOKENIZER, packing=False, num_samples=5, seed=seed)) for seed in (0, 0, 1)
    )
    assert one == same != other and len(one) == 5


def test_tokenised_rows_need_no_tokenizer_and_keep_the_models_other_inputs() -> None:
    rows = {
        "input_ids": [[5, 6, 7], [8], [9, 10, 11, 12]],
        "token_type_ids": [[0, 1, 1], [1], [0, 0, 1, 1]],
        "attention_mask": [[1, 1, 0], [1], [1, 1, 1, 1]],
        "label": [1, 0, 1],
        "text": ["x", "y", "z"],
    }
    [batch] = build_calibration(Dataset.from_dict(rows), max_seq_length=3)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0], [9, 10, 11]],
        "token_type_ids": [[0, 1, 1], [1, 0, 0], [0, 0, 1]],
        "attention_mask": [[1, 1, 0], [1, 0, 0], [1, 1, 1]],
        "labels": [1, 0, 1],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_labels_of_tokens_are_padded_with_the_ignored_index() -> None:
    dataset = Dataset.from_dict({"input_ids": [[5, 6], [7]], "labels": [[5, 6], [7]]}).with_format("torch")
    [batch] = build_calibration(dataset, make_tokenizer(pad_token="<pad>", padding_side="left"))
    assert batch["labels"].tolist() == [[5, 6], [-100, 7]]
    assert batch["input_ids"].tolist() == [[5, 6], [3, 7]]


def test_regression_labels_stay_floating_point() -> None:
    [batch] = build_calibration([{"input_ids": [5, 6], "labels": 0.5}, {"input_ids": torch.tensor([7]), "labels": 1.5}])
    assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == [0.5, 1.5]


# ---- build_calibration: ready batches


def test_ready_batches_are_used_unchanged() -> None:
    batch = {"input_ids": torch.arange(6).reshape(2, 3), "anything": torch.ones(2)}
    data = build_calibration([batch], num_samples=1)
    assert data.batches[0].keys() == batch.keys() and all(data.batches[0][name] is batch[name] for name in batch)
    assert (data.num_sequences, data.num_tokens) == (2, 6)
    assert data.protocol["max_seq_length"] == 3 and data.protocol["num_samples"] is None
    json.dumps(data.protocol)
    examples: Any = [{"input_ids": torch.tensor([index, 1])} for index in range(5)]
    loader = DataLoader(examples, batch_size=2)
    assert rows_of(build_calibration(loader, num_samples=1)) == [[index, 1] for index in range(5)]
    [images] = build_calibration([{"pixel_values": torch.zeros(3, 1, 2, 2)}])
    assert images["pixel_values"].shape == (3, 1, 2, 2)


def test_tensor_batches_get_a_full_mask() -> None:
    [batch] = build_calibration([torch.tensor([[1, 2], [3, 4]])])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 4]] and batch["attention_mask"].tolist() == [[1, 1], [1, 1]]


# ---- build_calibration: errors


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (["abc"], {}, "`processing_class` is missing"),
        (Dataset.from_dict({"text": ["abc"]}), {}, "`processing_class` is missing"),
        ([], {}, "source is empty"),
        (Dataset.from_dict({"text": []}), {}, "source is empty"),
        ("abc", {}, "`source` is one string"),
        (DatasetDict(train=Dataset.from_dict({"text": ["a"]})), {}, r"dict with \['train'\]. Give one split"),
        ([3], {}, "holds a int, not a text"),
        ([{"text": "abc"}], {}, "`processing_class` is missing"),
        ([{"a": torch.ones(2), "b": 3}, 3], {"processing_class": TOKENIZER}, "Which column holds the text"),
        (["abc", 3], {"processing_class": TOKENIZER}, "An item of the calibration texts is a int"),
        ([" ", "\n"], {"processing_class": TOKENIZER, "packing": False}, "no tokens at all"),
        (Dataset.from_dict({"input_ids": [[1]]}).select([]), {}, "source is empty"),
        ([{"input_ids": []}], {}, "no tokens at all"),
        ([{"input_ids": [[1, 2], [3, 4]]}], {}, "nested `input_ids`"),
        (["abc"], {"num_samples": 0}, "`num_samples` is 0"),
        (["abc"], {"batch_size": 0}, "`batch_size` is 0"),
        (["abc"], {"max_seq_length": -1}, "`max_seq_length` is -1"),
        (["abc"], {"processing_class": TOKENIZER, "max_seq_length": 9, "max_position_embeddings": 8}, "at most 8 pos"),
        ([torch.ones(1, 9).long()], {"max_position_embeddings": 8}, "`max_seq_length` is 9, .* at most 8 positions"),
        (
            ["a" * 130],
            {"processing_class": TOKENIZER},
            "`max_seq_length` is 512 but the calibration text has only 130 tokens. Give more text or lower",
        ),
    ],
)
def test_unusable_sources_give_one_clear_line(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build_calibration(source, **options)
    assert "\n" not in str(error.value)


def test_null_texts_count_as_empty() -> None:
    dataset = Dataset.from_dict({"text": ["abc", None, "d"]})
    assert rows_of(build_calibration(dataset, TOKENIZER, joiner=" ", max_seq_length=6)) == [ids_of("abc  d")]


# ---- self_generated


def test_generated_rows_are_full_begin_with_bos_and_never_end_early() -> None:
    model = make_model()
    # The end-of-text token is made by far the likeliest of all.
    end = 20 * torch.nn.functional.one_hot(torch.tensor(2), 64)
    model.lm_head.register_forward_hook(lambda _module, _args, output: output + end)
    model.train()
    data = self_generated(model, TOKENIZER, num_samples=5, max_seq_length=12, batch_size=2)
    assert [batch["input_ids"].shape for batch in data] == [(2, 12), (2, 12), (1, 12)]
    assert all(batch["attention_mask"].all() for batch in data)
    rows = rows_of(data)
    assert all(row[0] == 1 and 2 not in row for row in rows)
    assert len({tuple(row) for row in rows}) == 5
    assert model.training
    json.dumps(data.protocol)
    assert data.protocol["num_tokens"] == 60 and data.protocol["temperature"] == 1.0
    # Batches made under inference mode could not be used for a loss-aware pass.
    assert not any(batch["input_ids"].is_inference() for batch in data)


def test_generated_rows_repeat_with_the_seed_and_leave_the_random_state_alone() -> None:
    model = make_model()
    before = torch.get_rng_state()
    one, same, other = (rows_of(self_generated(model, num_samples=3, max_seq_length=8, seed=s)) for s in (0, 0, 1))
    assert one == same != other
    assert torch.equal(before, torch.get_rng_state())


def test_generation_ignores_the_sampling_defaults_of_the_model() -> None:
    model = make_model()
    model.generation_config.top_k = 1
    rows = rows_of(self_generated(model, num_samples=4, max_seq_length=8))
    assert len({tuple(row) for row in rows}) == 4


def test_generation_without_bos_begins_with_random_ordinary_tokens() -> None:
    tokenizer = make_tokenizer(eos_token="</s>", pad_token="<pad>")
    model = make_model(bos_token_id=None)
    firsts = {row[0] for row in rows_of(self_generated(model, tokenizer, num_samples=32, max_seq_length=2))}
    assert len(firsts) > 10
    assert firsts <= set(range(len(tokenizer))) - set(tokenizer.all_special_ids)


def test_generation_errors_name_the_cause() -> None:
    bert = BertForMaskedLM(BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="`BertForMaskedLM` cannot generate text"):
        self_generated(bert, TOKENIZER, num_samples=1, max_seq_length=8)
    with pytest.raises(ValueError, match="`max_seq_length` is 65, but the model takes at most 64 positions"):
        self_generated(make_model(), TOKENIZER, num_samples=1, max_seq_length=65)
    with pytest.raises(ValueError, match="`max_seq_length` is 1, but generated text needs at least 2"):
        self_generated(make_model(), TOKENIZER, num_samples=1, max_seq_length=1)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"inputs_embeds": torch.zeros(2, 5, 32)}, "`inputs_embeds` and no `input_ids`"),
        ({"input_ids": torch.tensor([[5, -100, 7]])}, "`input_ids` holds -100"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 1, 4, 4)}, r"shape \(1, 1, 4, 4\)"),
    ],
)
def test_batches_that_the_signals_cannot_be_read_from_are_told(batch, message) -> None:
    arguments = SpectralPruningArguments(target_reduction=0.2, disable_tqdm=True)
    with pytest.raises(ValueError, match=message) as error:
        SpectralPruner(tiny_model(), arguments, [batch])
    assert "\n" not in str(error.value)


def test_ids_of_another_width_are_ids() -> None:
    batch = {"input_ids": torch.arange(3, 13, dtype=torch.int32)[None], "attention_mask": torch.ones(1, 10, dtype=torch.bool)}
    arguments = SpectralPruningArguments(target_reduction=0.2, criterion="magnitude", compensation="none", disable_tqdm=True)
    figures = [
        SpectralPruner(tiny_model(), arguments, eval_dataset=[given]).evaluate()
        for given in (batch, {name: value.long() for name, value in batch.items()})
    ]
    assert figures[0] == figures[1]


class GemmaTokenizer(PreTrainedTokenizerFast):
    """Known by its name."""


@pytest.mark.parametrize("stream", [False, True])
def test_blocks_for_gemma_begin_with_its_bos_token_and_others_do_not(stream: bool) -> None:
    plain = make_tokenizer(bos_token="z")
    texts = ["abcdefgh " * 9, "ijklmnop " * 9]

    def rows(tokenizer: PreTrainedTokenizerFast) -> tuple[list[list[int]], dict[str, Any]]:
        data = build_calibration(iter(texts) if stream else texts, tokenizer, num_samples=4, max_seq_length=8, shuffle=False)
        return [row for batch in data for row in batch["input_ids"].tolist()], data.protocol

    usual, protocol = rows(plain)
    begun, told = rows(GemmaTokenizer(tokenizer_object=plain.backend_tokenizer, bos_token="z"))
    assert "first_token" not in protocol and told["first_token"] == "z"
    assert [row[1:] for row in begun] == [row[1:] for row in usual]
    assert {row[0] for row in begun} == {plain.bos_token_id} and {row[0] for row in usual} != {plain.bos_token_id}


def test_a_cache_that_cannot_be_written_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a file" / "cache")
    with pytest.raises(ValueError, match="`HF_DATASETS_CACHE`"):
        load_texts(tmp_path / "a.jsonl")
