"""What a model says itself: how it goes on with three prompts, or its top predictions for three texts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.texts import CalibrationData, unpadded_row
from ..models.families import max_tokens
from ..models.losses import Batch, moved_to, predicts_next_token, single_sequences
from ..models.modes import evaluating
from ..models.offload import is_offloaded
from ..utils.types import ProcessingClass
from ..utils.words import one_line

logger = logging.get_logger(__name__)

NUM_TEXTS, PROMPT_TOKENS, NEW_TOKENS = 3, 16, 40
_MOST_CHARACTERS = 300
# How tokenizers mark a piece that begins a word: byte-level BPE, SentencePiece.
_WORD_STARTS = ("Ġ", "▁")


def model_samples(model: PreTrainedModel, data: CalibrationData, tokenizer: ProcessingClass | None) -> dict[str, str]:
    """{text: what the model makes of it} for the first three rows of the data, greedily.

    A causal language model goes on with about 16 tokens for at most 40 more; a classifier of texts gives its most likely
    label with its probability. Empty for other models, and without a tokenizer.
    """
    say = _sayer(model)
    if say is None or not hasattr(tokenizer, "decode"):
        return {}
    said = {}
    with evaluating(model), torch.inference_mode():
        for row in islice(single_sequences(data.batches), NUM_TEXTS):
            prompt, answer = say(model, _inputs(row), tokenizer)  # type: ignore[arg-type]
            said[prompt] = answer
    return said


def samples_if_any(model: PreTrainedModel, data: CalibrationData | None, tokenizer: ProcessingClass | None) -> dict[str, str]:
    """`model_samples`, and nothing where there is no data or the model fails at it: no run may end for it.

    Nor has a model anything to say whose layers lie on the disk: every token would read all of them.
    """
    if data is None or is_offloaded(model):
        return {}
    try:
        return model_samples(model, data, tokenizer)
    except Exception as error:  # whatever the generation of a class of its own raises
        logger.info(f"The report has no text of the model. {one_line(error)}")
        return {}


def paired(before: dict[str, str], after: dict[str, str]) -> list[dict[str, str]]:
    """The texts of both models side by side."""
    return [{"text": text, "before": answer, "after": after[text]} for text, answer in before.items() if text in after]


def _sayer(model: PreTrainedModel) -> Callable[[PreTrainedModel, Batch, PreTrainedTokenizerBase], tuple[str, str]] | None:
    if predicts_next_token(model) and model.can_generate():
        return _continuation
    return _prediction if type(model).__name__.endswith("ForSequenceClassification") else None


def _inputs(row: Batch) -> Batch:
    """A row of a batch (1, T) without padding and labels."""
    flat = {name: value[0] for name, value in row.items() if name in ("input_ids", "attention_mask", "token_type_ids")}
    return {name: value[None] for name, value in unpadded_row(flat).items()}


def _continuation(model: PreTrainedModel, row: Batch, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    prompt = _whole_words(row["input_ids"], tokenizer)
    most = (max_tokens(model.config) or PROMPT_TOKENS + NEW_TOKENS) - prompt.shape[1]
    generation = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=max(1, min(NEW_TOKENS, most)), pad_token_id=0)
    generator: Any = model
    ids = moved_to(model, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)})
    found = generator.generate(**ids, generation_config=generation)[0].cpu()
    return _text(tokenizer, prompt[0]), _text(tokenizer, found[prompt.shape[1] :])


def _whole_words(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The first 16 tokens (1, T) from a place on where a word begins and up to one: rows of joined texts begin anywhere."""
    pieces = tokenizer.convert_ids_to_tokens(ids[0, : 2 * PROMPT_TOKENS].tolist())
    starts = [place for place, piece in enumerate(pieces) if str(piece).startswith(_WORD_STARTS)]
    first = next((place for place in starts if place < PROMPT_TOKENS), 0)
    last = max((place for place in starts if first + PROMPT_TOKENS // 2 <= place <= first + PROMPT_TOKENS), default=None)
    return ids[:, first : last or first + PROMPT_TOKENS]


def _prediction(model: PreTrainedModel, row: Batch, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    logits = model(**moved_to(model, row)).logits[0].float()  # (num_labels,)
    text = _text(tokenizer, row["input_ids"][0])
    if len(logits) == 1:  # a regression
        return text, f"{float(logits[0]):.3f}"
    shares = logits.sigmoid() if model.config.problem_type == "multi_label_classification" else logits.softmax(dim=0)
    best = int(shares.argmax())
    names: Any = model.config.id2label
    return text, f"{names[best]} ({float(shares[best]):.1%})".replace("%)", " %)")


def _text(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> str:
    text = " ".join(str(tokenizer.decode(ids, skip_special_tokens=True)).split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
