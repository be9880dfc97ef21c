"""Scores the choices of examples by their log-probability after the prompt, and says which are right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.modes import evaluating
from ...utils.progress import stage
from .tasks import Example

Normalisation = Literal["sum", "mean"]


@dataclass(frozen=True)
class Rows:
    """Sequences that run together, padded on the right, and the predictions that are read from them.

    Attributes:
        input_ids, attention_mask: (B, T).
        rows, positions: (N,) where a prediction is read.
        targets: (N,) the token that is predicted there.
        slots: (N,) which choice the token belongs to, counted over all examples.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    slots: Tensor

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        return Rows(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Questions:
    """Tokenised examples.

    Attributes:
        contexts: (T,) token ids of every example's context, which is the same for all its choices.
        labels: index of the right choice.
        lengths: number of tokens of every choice of every example.
        batches: all sequences that must be run to score all choices.
    """

    contexts: tuple[Tensor, ...]
    labels: tuple[int, ...]
    lengths: tuple[tuple[int, ...], ...]
    batches: tuple[Rows, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Outcome:
    """How a model did on examples.

    Attributes:
        correct: of every example, whether its right choice has the highest score (of equal ones the first counts).
        label_log_probability: mean log of the right choice's share in the probability of all choices.
    """

    correct: tuple[bool, ...]
    label_log_probability: float

    @property
    def accuracy(self) -> float:
        """Share of examples that are right."""
        return sum(self.correct) / len(self.correct)


def tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_positions: int | None = None, batch_tokens: int = 2048
) -> Questions:
    """Tokenises examples and packs the sequences that must be run into batches.

    A text is tokenised whole, prompt and choice together, as it would stand in a document. The context is what all an
    example's choices share of the prompt's own tokens: where a token reaches across the boundary (a blank, a merged
    syllable) it belongs to the choice, for all choices alike, so that their probabilities are of the same text.

    Choices that begin alike are read from one sequence; with choices of one token each, the prompt is run once.

    Raises:
        ValueError: an example is too long for the model's positions, or gives no token to predict from (names its place).
    """
    contexts, lengths, sequences = [], [], []
    slot = 0
    for example in examples:
        context, choices = _split(example, tokenizer)
        longest = len(context) + max(map(len, choices))
        if max_positions is not None and longest > max_positions:
            raise ValueError(
                f"{example.where} has {longest:,} tokens, but the model takes at most {max_positions:,} positions. Shorten its "
                "prompt or leave it out."
            )
        contexts.append(torch.tensor(context))
        lengths.append(tuple(map(len, choices)))
        sequences += _sequences(context, choices, slot)
        slot += len(choices)
    return Questions(
        tuple(contexts), tuple(example.label for example in examples), tuple(lengths), tuple(_pack(sequences, batch_tokens))
    )


def _split(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[list[int]]]:
    """An example's context and its choices' tokens behind it."""
    whole = [tokenizer(example.text(choice))["input_ids"] for choice in range(len(example.choices))]
    shared = tokenizer(example.prompt)["input_ids"]
    for ids in whole:
        # One token at least is left to be predicted, even where the tokenizer makes nothing of a choice.
        same = (index for index, (a, b) in enumerate(zip(shared, ids[:-1], strict=False)) if a != b)
        shared = shared[: next(same, min(len(shared), len(ids) - 1))]
    if not shared:
        raise ValueError(
            f"{example.where}: the prompt and its choices share no whole token, so nothing can be predicted from it."
        )
    return list(shared), [list(ids[len(shared) :]) for ids in whole]


_Prediction = tuple[int, int, int]  # position, token, slot
_Sequence = tuple[list[int], list[_Prediction]]


def _sequences(context: list[int], choices: list[list[int]], slot: int) -> list[_Sequence]:
    """Sequences with the predictions that are read from each; one that begins another is read from that."""
    kept: list[_Sequence] = []
    for index in sorted(range(len(choices)), key=lambda index: -len(choices[index])):
        ids = context + choices[index][:-1]
        predictions = [(len(context) - 1 + k, token, slot + index) for k, token in enumerate(choices[index])]
        host = next((entry for entry in kept if entry[0][: len(ids)] == ids), None)
        if host is None:
            kept.append((ids, predictions))
        else:
            host[1].extend(predictions)
    return kept


def _pack(sequences: list[_Sequence], batch_tokens: int) -> Iterator[Rows]:
    """Sequences of like length side by side, at most `batch_tokens` a batch with their padding (a longer one runs alone)."""
    ordered = sorted(sequences, key=lambda entry: -len(entry[0]))
    while ordered:
        width = len(ordered[0][0])
        count = max(1, batch_tokens // width)
        yield _rows(ordered[:count], width)
        ordered = ordered[count:]


def _rows(sequences: list[_Sequence], width: int) -> Rows:
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    places = []
    for row, (tokens, predictions) in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        places += [(row, *prediction) for prediction in predictions]
    rows, positions, targets, slots = torch.tensor(places).T
    return Rows(ids, mask, rows, positions, targets, slots)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, batch: Rows) -> Tensor:
    """(N,) float64 on the CPU: log-probability of every target. Logits are made at the positions that are read only."""
    hidden = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)[0]
    logits = model.get_output_embeddings()(hidden[batch.rows, batch.positions])  # (N, V)
    found = logits.float().log_softmax(dim=-1).gather(1, batch.targets[:, None])[:, 0]
    return found.double().cpu()


def outcome(questions: Questions, parts: Sequence[Tensor], normalisation: Normalisation = "sum") -> Outcome:
    """Puts the batches' log-probabilities (in the batches' order) together.

    Args:
        normalisation: a choice's score is the "sum" of its tokens' log-probabilities, or their "mean".

    Raises:
        ValueError: a score is not finite.
    """
    sizes = [len(lengths) for lengths in questions.lengths]
    scores = torch.zeros(sum(sizes), dtype=torch.float64)
    for batch, part in zip(questions.batches, parts, strict=True):
        scores.index_add_(0, batch.slots.cpu(), part)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("The model gives a choice a probability that is not a number. Load it in a wider `dtype` (float32).")
    if normalisation == "mean":
        scores = scores / torch.tensor([length for lengths in questions.lengths for length in lengths])
    correct, shares = [], []
    for label, mine in zip(questions.labels, scores.split(sizes), strict=True):
        correct.append(mine.tolist().index(float(mine.max())) == label)
        shares.append(float(mine.log_softmax(dim=0)[label]))
    return Outcome(tuple(correct), sum(shares) / len(shares))


def evaluate(
    model: PreTrainedModel,
    questions: Questions,
    normalisation: Normalisation = "sum",
    progress: bool = True,
) -> Outcome:
    """Scores all examples with the model as it stands.

    Raises:
        ValueError: see `outcome`.
    """
    with evaluating(model):
        batches = stage("Evaluating choices", questions.batches, unit="batches", show=progress)
        parts = [log_probabilities(model, batch.to(model.device)) for batch in batches]
    return outcome(questions, parts, normalisation)
