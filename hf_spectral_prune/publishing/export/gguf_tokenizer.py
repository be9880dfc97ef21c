"""Writes a tokenizer into a GGUF file as llama.cpp understands it; what llama.cpp would split otherwise is an error."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...utils.types import Json
from ...utils.words import first_line

# The patterns of the pre-tokenizers that llama.cpp implements (src/llama-vocab.cpp quotes them), as in `tokenizer.json`.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_GPT2_SPLIT = ("ByteLevel", False, True)  # add_prefix_space, use_regex
_BYTES_ONLY = ("ByteLevel", False, False)


# What a `tokenizer.json` holds, and a step of its pre-tokenizer: its type and options.
Parts = Json
Step = tuple[object, ...]


def _split(pattern: str) -> tuple[Step, ...]:
    return (("Split", pattern, "isolated", False), _BYTES_ONLY)


# Steps before the merges -> {ignore_merges: name for `tokenizer.ggml.pre`}.
PRE_TOKENIZERS: dict[tuple[Step, ...], dict[bool, str]] = {
    (_GPT2_SPLIT,): {False: "gpt-2"},
    (("Digits", True), _GPT2_SPLIT): {False: "smollm"},
    _split(_LLAMA3): {True: "llama-bpe", False: "smaug-bpe"},
    (("NFC",), *_split(_QWEN2)): {False: "qwen2"},
    _split(_QWEN2): {False: "qwen2"},
    _split(_TEKKEN): {True: "tekken"},
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MODEL, _SPACE = "tokenizer.model", "▁"


@dataclass(frozen=True)
class GGUFTokenizer:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: "gpt2" (byte-level BPE), "llama" (SentencePiece) or "bert" (WordPiece).
        pre: name of the pre-tokenizer.
        tokens: text of every row of the embedding matrix.
        types: a `gguf.TokenType` each.
        merges: pairs, in their order (byte-level BPE).
        scores: a score each (SentencePiece).
        special: ids by llama.cpp's names ("bos", "eos", "unk", "pad", ...).
        flags: "add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix".
        chat_template: one template, or several with names.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | list[dict[str, str]] | None = None

    def write(self, writer: GGUFWriter) -> None:
        """Adds it to the metadata of a GGUF file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, index in self.special.items():
            getattr(writer, f"add_{name}_token_id")(index)
        for name, value in self.flags.items():
            getattr(writer, f"add_{name}")(value)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(folder: str | Path, vocab_size: int) -> GGUFTokenizer:
    """The tokenizer of a model folder for llama.cpp.

    Args:
        vocab_size: rows of the embedding matrix; ids without a token are filled up.

    Raises:
        ValueError: there is none, or llama.cpp would cut text into other tokens than it does (says why).
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # What transformers runs, whatever files it was made from.
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise ValueError(f"`{folder}` has no tokenizer that loads ({reason}). Put its files in that folder.") from None
    bpe = parts["model"]
    if bpe["type"] == "WordPiece":
        return _word_piece(folder, tokenizer, parts, vocab_size)
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if bpe.get(name)]
    if bpe["type"] != "BPE" or odd:
        what = f"of type {bpe['type']}" if bpe["type"] != "BPE" else f"a BPE with `{odd[0]}`"
        raise ValueError(
            f"The tokenizer in `{folder}` is {what}; to GGUF go byte-level BPE (GPT-2, SmolLM, Llama 3, Qwen2), "
            "SentencePiece BPE (Llama 2, Mistral, Gemma) and WordPiece (BERT). Use a model with one of those."
        )
    tokens, types = _tokens(folder, tokenizer, parts, vocab_size)
    common: Parts = {
        "tokens": tokens,
        "types": types,
        "special": _special_ids(tokenizer),
        "chat_template": _chat_template(tokenizer),
    }
    flags = _added_ends(folder, tokenizer)
    if bpe.get("byte_fallback"):
        flags["add_space_prefix"] = _space_prefix(folder, parts)
        scores = _scores(Path(folder), parts, tokens, types)
        return GGUFTokenizer("llama", "default", scores=scores, flags=flags, **common)
    flags["add_space_prefix"] = False
    pre = _pre_tokenizer(folder, tokenizer, parts)
    return GGUFTokenizer("gpt2", pre, merges=[" ".join(pair) for pair in _merges(bpe)], flags=flags, **common)


def _tokens(folder: str | Path, tokenizer: PreTrainedTokenizerBase, parts: Parts, vocab_size: int) -> tuple[list[str], list[int]]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    largest = max(vocabulary.values())
    if largest >= vocab_size:
        raise ValueError(
            f"The tokenizer in `{folder}` has the id {largest:,}, but the model has {vocab_size:,} embeddings only. Put the "
            "model's own tokenizer there."
        )
    added = {entry["id"]: entry for entry in parts["added_tokens"]}
    tokens, types = [f"[PAD{index}]" for index in range(vocab_size)], [int(TokenType.UNUSED)] * vocab_size
    for text, index in vocabulary.items():
        tokens[index] = text
        if index in added:
            tokens[index] = added[index]["content"]
            types[index] = TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
        elif parts["model"].get("byte_fallback") and _BYTE.fullmatch(text):
            types[index] = TokenType.BYTE
        else:
            types[index] = TokenType.NORMAL
    if parts["model"].get("byte_fallback"):
        if types.count(TokenType.BYTE) != 256:
            raise ValueError(
                f"The tokenizer in `{folder}` has {types.count(TokenType.BYTE)} byte tokens; llama.cpp needs all 256."
            )
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = TokenType.UNKNOWN
    return tokens, [int(kind) for kind in types]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "unk": "unk", "sep": "sep", "pad": "pad", "mask": "mask"}
    ids = {name: getattr(tokenizer, f"{attribute}_token_id") for name, attribute in names.items()}
    return {name: index for name, index in ids.items() if index is not None}


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | list[dict[str, str]] | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text, seen by what it does."""
    bare, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next((at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare), 0)
    return full[:start], full[start + len(bare) :]


def _added_ends(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    before, after = _ends(tokenizer)
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise ValueError(
            f"The tokenizer in `{folder}` puts the ids {before} before and {after} after a text; llama.cpp can only put the "
            "`bos_token` before and the `eos_token` after it."
        )
    return {"add_bos_token": bool(before), "add_eos_token": bool(after)}


def _steps(part: Parts | None) -> list[Step]:
    """A normalizer or pre-tokenizer as plain tuples, what only concerns offsets left out."""
    if part is None:
        return []
    kind = part["type"]
    if kind == "Sequence":
        return [step for inner in part.get("pretokenizers") or part.get("normalizers") or [] for step in _steps(inner)]
    if kind == "ByteLevel":
        return [(kind, part["add_prefix_space"], part["use_regex"])]
    if kind == "Split":
        return [(kind, next(iter(part["pattern"].values())), part["behavior"].lower(), part["invert"])]
    return [(kind, *(value for name, value in part.items() if name != "type" and not isinstance(value, dict)))]


def _pre_tokenizer(folder: str | Path, tokenizer: PreTrainedTokenizerBase, parts: Parts) -> str:
    steps = (*_steps(parts["normalizer"]), *_steps(parts["pre_tokenizer"]))
    names = PRE_TOKENIZERS.get(steps)
    if names is None:
        known = ", ".join(sorted({name for row in PRE_TOKENIZERS.values() for name in row.values()}))
        shown = " + ".join(str(step[0]) for step in steps) or "none"
        raise ValueError(
            f"The pre-tokenizer of `{folder}` ({shown}) is none of those that are known to be the same in llama.cpp ({known}). "
            "It is not guessed, because a wrong one changes the tokens silently."
        )
    ignore_merges = bool(parts["model"].get("ignore_merges"))
    if ignore_merges in names:
        return names[ignore_merges]
    if not _merges_make_every_token(tokenizer, parts):
        raise ValueError(
            f"The tokenizer in `{folder}` is like llama.cpp's `{names[not ignore_merges]}` but for `ignore_merges`, which "
            "changes its tokens here."
        )
    return names[not ignore_merges]


def _merges_make_every_token(tokenizer: PreTrainedTokenizerBase, parts: Parts) -> bool:
    """Whether the merges lead to every token, so that `ignore_merges` changes nothing."""
    model = tokenizer.backend_tokenizer.model
    added = {entry["content"] for entry in parts["added_tokens"]}
    before = model.ignore_merges
    model.ignore_merges = False
    try:
        return all(len(model.tokenize(token)) == 1 for token in parts["model"]["vocab"] if token not in added)
    finally:
        model.ignore_merges = before


def _merges(bpe: Parts) -> list[tuple[str, str]]:
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"]]
    return [(left, right) for left, right in pairs]


# ---- SentencePiece


def _space_prefix(folder: str | Path, parts: Parts) -> bool:
    """Whether a text gets a space before it; also checks that spaces become ▁ and nothing else is done."""
    text = json.dumps([parts["normalizer"], parts["pre_tokenizer"]], ensure_ascii=False, sort_keys=True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "split": False}
    # Gemma splits at spaces, of which the normalizer has left none.
    at_spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    forms: list[tuple[object, object, bool]] = [
        ({"type": "Sequence", "normalizers": [prepend, replace]}, None, True),
        ({"type": "Sequence", "normalizers": [replace]}, None, False),
        (replace, None, False),
        (replace, at_spaces, False),
        # These put no ▁ before a text that begins with a space; llama.cpp does, as SentencePiece itself.
        *((None, {**metaspace, "prepend_scheme": scheme}, scheme != "never") for scheme in ("first", "always", "never")),
    ]
    for normalizer, pre_tokenizer, prefix in forms:
        if text == json.dumps([normalizer, pre_tokenizer], ensure_ascii=False, sort_keys=True):
            return prefix
    steps = (*_steps(parts["normalizer"]), *_steps(parts["pre_tokenizer"]))
    shown = " + ".join(str(step[0]) for step in steps) or "none"
    raise ValueError(
        f"The tokenizer in `{folder}` has byte fallback like SentencePiece, but prepares its text in a way ({shown}) that is not "
        "known to be the same in llama.cpp."
    )


def _scores(folder: Path, parts: Parts, tokens: list[str], types: list[int]) -> list[float]:
    """Scores that make llama.cpp's SentencePiece merge as the tokenizer does: those of its own model file, or its ranks."""
    if (folder / _MODEL).is_file():
        return _scores_of_model_file(folder, tokens)
    pairs = _merges(parts["model"])
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, []).append(rank)
    _check_scores_suffice(folder, pairs, ranks, {t for t, kind in zip(tokens, types, strict=True) if kind == TokenType.NORMAL})
    # Tokens that no merge makes are never a candidate; they come last.
    return [-float(min(ranks.get(token, [len(pairs)]))) for token in tokens]


def _check_scores_suffice(folder: Path, pairs: list[tuple[str, str]], ranks: dict[str, list[int]], normal: set[str]) -> None:
    # llama.cpp joins any two neighbours whose text is a token, the best score first; the tokenizer only those it has a merge
    # for. So every such pair must be a merge, and the merges of a token must not be interleaved with those of another.
    known = set(pairs)
    for token in normal:
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        for left, right in halves:
            if left in normal and right in normal and (left, right) not in known:
                raise ValueError(
                    f"The tokenizer in `{folder}` has no merge `{left} {right}`, though `{token}` is a token: llama.cpp would "
                    f"join them. If it was made from a SentencePiece model, put its `{_MODEL}` in the folder."
                )
    spans = sorted((min(own), max(own)) for own in ranks.values())
    if any(end >= start for (_, end), (start, _) in pairwise(spans)):
        raise ValueError(
            f"The merges of the tokenizer in `{folder}` are not ordered token by token, which llama.cpp's scores cannot say. If "
            f"it was made from a SentencePiece model, put its `{_MODEL}` in the folder."
        )


def _scores_of_model_file(folder: Path, tokens: list[str]) -> list[float]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError:
        raise ValueError(f"`{folder / _MODEL}` needs the package `sentencepiece` to be read. Install it.") from None
    pieces = SentencePieceProcessor()
    try:
        pieces.Load(str(folder / _MODEL))
    except (RuntimeError, OSError):
        raise ValueError(f"`{folder / _MODEL}` is no SentencePiece model.") from None
    number = pieces.vocab_size()
    for index in range(min(number, len(tokens))):
        if pieces.IdToPiece(index) != tokens[index]:
            raise ValueError(
                f"`{folder / _MODEL}` has `{pieces.IdToPiece(index)}` where the tokenizer has `{tokens[index]}` (id {index})."
            )
    return [pieces.GetScore(index) if index < number else -float(number) for index in range(len(tokens))]


# ---- WordPiece


def _word_piece(folder: str | Path, tokenizer: PreTrainedTokenizerBase, parts: Parts, vocab_size: int) -> GGUFTokenizer:
    """BERT's: llama.cpp marks the beginnings of words with ▁ instead of the other pieces with ##."""
    normalizer, split = parts["normalizer"] or {}, (parts["pre_tokenizer"] or {}).get("type")
    plain = normalizer.get("type") == "BertNormalizer" and split == "BertPreTokenizer"
    kept = [name for name in ("clean_text", "handle_chinese_chars", "lowercase") if not normalizer.get(name)]
    if not plain or kept or normalizer["strip_accents"] is False or parts["model"]["continuing_subword_prefix"] != "##":
        why = f"`{kept[0]}` is off" if plain and kept else "its steps or its marks are others"
        raise ValueError(
            f"The tokenizer in `{folder}` is WordPiece, but not as llama.cpp's `bert`, which lowers case, strips accents and "
            f"splits at spaces and punctuation: {why}. Use an uncased BERT."
        )
    ends = _ends(tokenizer)
    if ends != ([tokenizer.cls_token_id], [tokenizer.sep_token_id]):
        raise ValueError(
            f"The tokenizer in `{folder}` puts the ids {ends[0]} before and {ends[1]} after a text; llama.cpp puts the "
            "`cls_token` before and the `sep_token` after it."
        )
    tokens, types = _tokens(folder, tokenizer, parts, vocab_size)
    for index, token in enumerate(tokens):
        if types[index] == TokenType.NORMAL:
            tokens[index] = token[2:] if token.startswith("##") else _SPACE + token
    special = _special_ids(tokenizer)
    special |= {"bos": ends[0][0]}  # as which llama.cpp takes the cls_token
    return GGUFTokenizer("bert", "default", tokens, types, special=special, flags={"add_bos_token": True, "add_sep_token": True})
