"""Texts -> rows of token ids: full blocks of one joined stream, or a row a text; no more is read or tokenised than needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import pyarrow.compute
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..utils.progress import stage
from ..utils.types import Row

# Long text is tokenised in pieces of this size: a tokenizer keeps some hundred bytes a token while it works.
_PIECE_CHARACTERS = 2**16
_PIECES_AT_ONCE = 8
# Of text that is made or fetched as it is read, pieces are smaller: what is left of the last one was read in vain.
_LAZY_PIECE_CHARACTERS = 2**13
# A draw of blocks from up to this much text is made of all its blocks; of more text, only passages drawn at random are tokenised.
# The limit does not depend on how many blocks are wanted, so that a larger draw (to recover on) has blocks of the same bounds.
_WHOLE_CHARACTERS = 2**24
# A passage has about eight blocks, and eight times the blocks that are wanted are tokenised: about a passage for every block.
_PASSAGE_CHARACTERS_PER_TOKEN = 32
_SPARE_BLOCKS = 8
# A row is tokenised from this many characters a token at first, and from more where they do not fill it.
_ROW_CHARACTERS_PER_TOKEN = 16
# Rows of a stream are drawn from the first of it: this many times as many as are wanted.
_SPARE_ROWS = 8
# Tokens beyond a row's end, so that a word cut in two does not show in it.
_ROW_MARGIN = 16


Item = TypeVar("Item")


def drawn(items: Iterable[Item], number: int, seed: int) -> list[Item]:
    """`number` items at random from the first eight times as many, in their order; no others are read or kept.

    Reservoir sampling: Vitter, "Random Sampling with a Reservoir", 1985, algorithm R.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[int, Item]] = []
    for index, item in enumerate(islice(items, _SPARE_ROWS * number)):
        if index < number:
            kept.append((index, item))
        elif (place := int(torch.randint(index + 1, (), generator=generator))) < number:
            kept[place] = (index, item)
    return [item for _, item in sorted(kept, key=lambda entry: entry[0])]


@dataclass(frozen=True)
class Choice:
    """How many rows of which length to take, and which ones."""

    num_samples: int
    max_seq_length: int
    shuffle: bool
    seed: int

    def indices(self, available: int) -> list[int]:
        """The places of the rows to take, in order."""
        if not self.shuffle or available <= self.num_samples:
            return list(range(min(available, self.num_samples)))
        return sorted(self.order(available)[: self.num_samples])

    def of_stream(self, items: Iterable[Item]) -> list[Item]:
        """The items to take of an iterable without a length, in their order: drawn at random (`drawn`), or the first ones."""
        return drawn(items, self.num_samples, self.seed) if self.shuffle else list(islice(items, self.num_samples))

    def order(self, available: int) -> list[int]:
        """All places in an order that the seed draws; without `shuffle` as they are."""
        if not self.shuffle:
            return list(range(available))
        return torch.randperm(available, generator=torch.Generator().manual_seed(self.seed)).tolist()


@dataclass(frozen=True)
class Texts:
    """Texts that are read from rows as they are asked for.

    Attributes:
        items: a sequence of rows, or an iterable of them that has no length (a stream).
        read: row -> text.
        column: the data set's column that is the text as it stands, which Arrow can count.
        rendered: whether a chat template made the texts: special tokens are in them, and they are not made to be counted.
    """

    items: Any
    read: Callable[[Any], str]
    column: str | None = None
    rendered: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether rows come one after the other, in no other order than theirs."""
        return not (hasattr(self.items, "__len__") and hasattr(self.items, "__getitem__"))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[str]:
        if isinstance(self.items, Dataset) and self.column is not None:
            for rows in self.items.iter(batch_size=1000):
                # Tables read from JSON and CSV have nulls where a field was empty.
                yield from (text or "" for text in rows[self.column])
            return
        yield from map(self.read, self.items)

    def part(self, first: int, end: int) -> list[str]:
        """The texts from place `first` to before `end`."""
        if isinstance(self.items, Dataset):
            table = self.items[first:end]
            return [self.read(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)]
        return [self.read(self.items[index]) for index in range(first, end)]

    def lengths(self) -> Tensor:
        """Characters of every text (N,)."""
        if not isinstance(self.items, Dataset):
            return torch.tensor([len(text) for text in self])
        # Arrow counts without making a Python string of every text.
        tables = self.items.with_format("arrow").iter(batch_size=10_000)
        counts = (pyarrow.compute.utf8_length(table[self.column]).fill_null(0) for table in tables)
        return torch.cat([torch.tensor(count.to_numpy(), dtype=torch.int64) for count in counts])


def blocks(texts: Texts, tokenizer: PreTrainedTokenizerBase, joiner: str, choice: Choice) -> list[dict[str, Tensor]]:
    """Full blocks `input_ids` (T,) of the joined texts: drawn at random, or the first ones.

    Raises:
        ValueError: there is less text than one block.
    """
    length = choice.max_seq_length
    if texts.is_stream:
        return _blocks_of_stream(texts, tokenizer, joiner, choice)
    needed = choice.num_samples * length
    chosen = choice.indices
    if texts.rendered or not choice.shuffle:
        # Chats are drawn one by one, because they would have to be made to be counted.
        ordered = (texts.part(at, at + 1)[0] for at in choice.order(len(texts)))
        stream = _tokenise_stream(ordered, tokenizer, joiner, needed, lazy=texts.rendered)
        chosen = Choice(choice.num_samples, length, shuffle=False, seed=0).indices
    elif int((lengths := texts.lengths()).sum()) <= _WHOLE_CHARACTERS:
        stream = _tokenise_stream(texts, tokenizer, joiner, None)
    else:
        passages = _drawn_passages(texts, lengths, joiner, _PASSAGE_CHARACTERS_PER_TOKEN * length, choice.seed)
        stream = _tokenise_stream(passages, tokenizer, joiner, _SPARE_BLOCKS * needed)
    available = len(stream) // length
    if available == 0:
        raise ValueError(
            f"`max_seq_length` is {length} but the calibration text has only {len(stream)} tokens. "
            "Give more text or lower `max_seq_length`."
        )
    return [_block(stream[index * length : (index + 1) * length], tokenizer) for index in chosen(available)]


def first_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What every block begins with: of Gemma the bos token, without which its models say nothing sensible
    (EleutherAI/lm-evaluation-harness#1465); of others whatever the text has there."""
    return tokenizer.bos_token if type(tokenizer).__name__.startswith("Gemma") else None


def _block(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    if first_token(tokenizer) is not None:
        ids = ids.clone()
        ids[0] = tokenizer.bos_token_id
    return {"input_ids": ids}


def _blocks_of_stream(texts: Texts, tokenizer: PreTrainedTokenizerBase, joiner: str, choice: Choice) -> list[dict[str, Tensor]]:
    every = block_stream(texts, tokenizer, joiner, choice.max_seq_length)
    found = choice.of_stream(stage("Tokenising", every, unit="blocks"))
    if not found:
        raise ValueError(
            f"`max_seq_length` is {choice.max_seq_length} but the streamed text has fewer tokens than that. Give more text or "
            "lower `max_seq_length`."
        )
    return found


def block_stream(texts: Texts, tokenizer: PreTrainedTokenizerBase, joiner: str, length: int) -> Iterator[dict[str, Tensor]]:
    """All full blocks `input_ids` (length,) of the joined texts in their order, as they are asked for."""
    left = torch.empty(0, dtype=torch.int64)
    for piece in _pieces(texts, joiner, _LAZY_PIECE_CHARACTERS):
        [ids] = tokenizer([piece], add_special_tokens=False, verbose=False)["input_ids"]
        left = torch.cat([left, torch.tensor(ids, dtype=torch.int64)])
        full = len(left) // length
        yield from (_block(row, tokenizer) for row in left[: full * length].reshape(full, length))
        left = left[full * length :]


def text_rows(texts: Texts, tokenizer: PreTrainedTokenizerBase, choice: Choice) -> Iterator[Row]:
    """A row for each text that is not blank, cut at `max_seq_length` tokens, with the tokenizer's special tokens."""
    if texts.is_stream:
        chosen: Iterable[str] = choice.of_stream(text for text in texts if not _is_blank(text))
    elif texts.rendered:
        made = (texts.part(index, index + 1)[0] for index in choice.order(len(texts)))
        chosen = islice((text for text in made if not _is_blank(text)), choice.num_samples)
    else:
        filled = [index for index, text in enumerate(texts) if not _is_blank(text)]
        chosen = (texts.part(filled[index], filled[index] + 1)[0] for index in choice.indices(len(filled)))
    for text in stage("Tokenising", chosen, unit="texts"):
        # A chat template wrote the special tokens already.
        yield tokenise([text], tokenizer, choice.max_seq_length, add_special_tokens=not texts.rendered)


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def tokenise(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int, **options: bool) -> Row:
    """A text (or a pair of them) as the tokenizer truncates it to `length` tokens, of which it sees no more than it needs.

    A tokenizer works on the whole of a text before it cuts it, and keeps some hundred bytes a token meanwhile.
    """
    left = getattr(tokenizer, "truncation_side", "right") == "left"
    heads = [_head(text, tokenizer, length, left) for text in texts]
    return dict(tokenizer(*heads, truncation=True, max_length=length, **options))


def _head(text: str, tokenizer: PreTrainedTokenizerBase, length: int, left: bool) -> str:
    """As much of a text as has a few more tokens than `length`; its end where the tokenizer cuts at the left."""
    width = _ROW_CHARACTERS_PER_TOKEN * (length + _ROW_MARGIN)
    while width < len(text):
        head = text[-width:] if left else text[:width]
        if len(tokenizer(head, add_special_tokens=False, verbose=False)["input_ids"]) >= length + _ROW_MARGIN:
            return head
        width *= 4
    return text


def _pieces(texts: Iterable[str], joiner: str, size: int | None = None) -> Iterator[str]:
    """Yields the parts of `joiner.join(texts)`, in order and none longer than a piece, without building it whole."""
    size = size or _PIECE_CHARACTERS
    waiting: list[str] = []
    length = 0
    for index, text in enumerate(texts):
        text = joiner + text if index else text
        start = 0
        while length + len(text) - start > size:
            end = start + size - length
            cut = text.rfind("\n", start, end) + 1 or end
            yield "".join(waiting) + text[start:cut]
            waiting, length, start = [], 0, cut
        waiting.append(text[start:])
        length += len(text) - start
    yield "".join(waiting)


def _tokenise_stream(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, joiner: str, limit: int | None, lazy: bool = False
) -> Tensor:
    """Token ids (N,) of the joined texts; stops soon after `limit` tokens."""
    pieces = _pieces(texts, joiner, _LAZY_PIECE_CHARACTERS if lazy else None)
    parts: list[Tensor] = []
    count = 0
    with tqdm(desc="Tokenising", unit=" characters", unit_scale=True, delay=1, leave=False, disable=None) as bar:
        while (limit is None or count < limit) and (some := list(islice(pieces, 1 if lazy else _PIECES_AT_ONCE))):
            # `verbose=False`: no warning that the text is longer than the model's window, for it is cut later.
            for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
                parts.append(torch.tensor(ids, dtype=torch.int64))
                count += len(ids)
            bar.update(sum(map(len, some)))
    return torch.cat(parts)


def _drawn_passages(texts: Texts, lengths: Tensor, joiner: str, width: int, seed: int) -> Iterator[str]:
    """All of the texts, in passages in an order that the seed draws. A larger draw begins like a smaller one."""
    ends = lengths.cumsum(0)
    number = -(-int(ends[-1]) // width)
    for index in torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist():
        if passage := _passage(texts, ends, joiner, width, index):
            yield passage


def _passage(texts: Texts, ends: Tensor, joiner: str, width: int, index: int) -> str:
    """Passage `index` of about `width` characters; neighbouring texts stay together, as they may be parts of one."""
    first, start = _passage_bound(texts, ends, width, index)
    last, end = _passage_bound(texts, ends, width, index + 1)
    parts = texts.part(first, last + 1 if end else last)
    if end:
        parts[-1] = parts[-1][:end]
    if parts:
        parts[0] = parts[0][start:]
    return joiner.join(parts)


def _passage_bound(texts: Texts, ends: Tensor, width: int, index: int) -> tuple[int, int]:
    """Where passage `index` begins: the place of a text, and a character in it, moved back to a line break or its start."""
    at = index * width
    if at >= int(ends[-1]):
        return len(texts), 0
    row = int(torch.searchsorted(ends, at, right=True))
    [text] = texts.part(row, row + 1)
    within = at - (int(ends[row]) - len(text))
    start = text.rfind("\n", max(0, within - width), within) + 1
    return row, start or (within if within > width else 0)
