"""Scores of choices against a forward pass for each, whatever the padding, the batching and the tokens at the boundary."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model
from scipy.stats import binom
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_spectral_prune import Example
from hf_spectral_prune.studies.detrimental.figures import accuracy_figures, mcnemar
from hf_spectral_prune.studies.detrimental.scoring import Outcome, evaluate, log_probabilities, outcome, tokenise


def examples(number=12, choices=3, seed=0, words=(1, 3)) -> list[Example]:
    """Prompts of 1 to 14 words, choices of two to four."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        count = int(torch.randint(low, high + 1, (), generator=generator))
        return " ".join(f"w{word}" for word in torch.randint(40, 96, (count,), generator=generator).tolist())

    return [
        Example(draw(1, 14), tuple(f"{draw(*words)} w{40 + choice}" for choice in range(choices)), index % choices)
        for index in range(number)
    ]


def naive_scores(model, tokenizer, example, normalisation):
    """One choice at a time, the whole logits of its text, and a sum in words."""
    prompt = tokenizer(example.prompt)["input_ids"]
    scores = []
    for choice in range(len(example.choices)):
        ids = tokenizer(example.text(choice))["input_ids"]
        assert ids[: len(prompt)] == prompt
        with torch.no_grad():
            table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total = sum(float(table[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
        scores.append(total / (len(ids) - len(prompt)) if normalisation == "mean" else total)
    return scores


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen3"])
@pytest.mark.parametrize("normalisation", ["sum", "mean"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_scores_equal_a_forward_pass_for_each_choice(batch_tokens, normalisation, family, tokenizer):
    model, asked = tiny_model(family), examples()
    questions = tokenise(asked, tokenizer, batch_tokens=batch_tokens)
    found = evaluate(model, questions, normalisation, progress=False)
    expected = [naive_scores(model, tokenizer, example, normalisation) for example in asked]
    correct = tuple(scores.index(max(scores)) == example.label for scores, example in zip(expected, asked, strict=True))
    shares = [float(torch.tensor(s).log_softmax(0)[e.label]) for s, e in zip(expected, asked, strict=True)]
    assert found.correct == correct and 0 < sum(correct) < len(correct)
    assert found.label_log_probability == pytest.approx(sum(shares) / len(shares), abs=1e-5)


def test_choices_of_one_token_are_read_from_one_sequence(tokenizer):
    questions = tokenise([Example("w3 w4 w5", ("w6", "w7", "w8"), 0)], tokenizer)
    (batch,) = questions.batches
    assert batch.input_ids.tolist() == [[3, 4, 5]]
    assert batch.targets.tolist() == [6, 7, 8] and batch.positions.tolist() == [2, 2, 2]


def test_a_choice_that_begins_another_is_read_from_it(tokenizer):
    asked = [Example("w3", ("w6", "w6 w7", "w8 w9"), 1)]
    questions = tokenise(asked, tokenizer)
    assert sorted(ids.tolist() for ids in questions.batches[0].input_ids) == [[3, 6], [3, 8]]
    model = tiny_model()
    expected = naive_scores(model, tokenizer, asked[0], "sum")
    parts = [log_probabilities(model, batch) for batch in questions.batches]
    scores = torch.zeros(3, dtype=torch.float64)
    for batch, part in zip(questions.batches, parts, strict=True):
        scores.index_add_(0, batch.slots, part)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """Byte-pair tokens over words with their blanks ("▁yes"), as real models have: a blank at the boundary is merged."""
    plain = Tokenizer(models.BPE(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    plain.train_from_iterator(
        ["is it so? yes no never"] * 50, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")


@pytest.mark.parametrize("prompt", ["is it so?", "is it so? "])
def test_a_blank_at_the_boundary_belongs_to_the_choice(prompt, merging):
    questions = tokenise([Example(prompt, ("yes", "no"), 0)], merging)
    words = [
        merging.convert_ids_to_tokens(questions.contexts[0].tolist()),
        merging.convert_ids_to_tokens(questions.batches[0].targets),
    ]
    assert "".join(words[0]) == "is▁it▁so?"
    assert sorted(words[1]) == ["▁no", "▁yes"]


def test_a_merged_boundary_gives_all_choices_the_same_context(merging):
    """The blank merges with one choice and stands alone before the other: it is predicted for both."""
    questions = tokenise([Example("is it ", ("no", "\tno"), 0)], merging)
    assert merging.convert_ids_to_tokens(questions.contexts[0].tolist()) == ["is", "▁it"]
    first, second = (merging.convert_ids_to_tokens(tokens) for tokens in choice_tokens(questions, 2))
    assert first == ["▁no"] and second[0] == "▁" and questions.lengths == ((1, len(second)),)


def choice_tokens(questions, count):
    tokens = [[] for _ in range(count)]
    for batch in questions.batches:
        for place in batch.positions.argsort(stable=True).tolist():
            tokens[int(batch.slots[place])].append(int(batch.targets[place]))
    return tokens


def test_a_prompt_that_shares_no_token_is_told():
    whole = Tokenizer(models.WordLevel({"ask": 0, "ask me": 1, "ask you": 2}, unk_token="ask"))
    with pytest.raises(ValueError, match=r"here, line 7: the prompt and its choices share no whole token"):
        tokenise([Example("ask", ("me", "you"), 0, where="here, line 7")], PreTrainedTokenizerFast(tokenizer_object=whole))


def test_an_example_too_long_for_the_model_is_told(tokenizer):
    long = Example(" ".join(["w3"] * 130), ("w4", "w5"), 0, where="data.jsonl, line 4")
    with pytest.raises(ValueError, match=r"data.jsonl, line 4 has 131 tokens, but the model takes at most 128") as raised:
        tokenise([long], tokenizer, max_positions=128)
    assert "\n" not in str(raised.value)


def test_of_equal_scores_the_first_counts_and_no_number_is_told(tokenizer):
    questions = tokenise([Example("w3", ("w4", "w5"), 0), Example("w3", ("w4", "w5"), 1)], tokenizer)
    same = [torch.full((len(batch.slots),), -1.0, dtype=torch.float64) for batch in questions.batches]
    assert outcome(questions, same).correct == (True, False)
    with pytest.raises(ValueError, match="not a number"):
        outcome(questions, [part * float("nan") for part in same])


def test_wilson_and_mcnemar_against_their_definitions():
    figures = accuracy_figures([True] * 7 + [False] * 3)
    n, p, z = 10, 0.7, 1.959963984540054
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (figures["low"], figures["high"]) == pytest.approx((centre - half, centre + half))
    assert (figures["accuracy"], figures["num_examples"]) == (0.7, 10)
    test = mcnemar([True, False, False, False, False, True], [True, True, True, True, False, False])
    assert (test["gained"], test["lost"]) == (3, 1)
    assert test["p_value"] == pytest.approx(2 * binom.cdf(1, 4, 0.5))
    assert mcnemar([True, False], [True, False])["p_value"] == 1.0
    assert Outcome((True, False, False, True), 0.0).accuracy == 0.5
