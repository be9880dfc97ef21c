"""Chats as data sets hold them -> text, by the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..utils.types import Row

# ShareGPT's words for the roles.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_TURN = ({"role", "content"}, {"from", "value"})


def is_chat(value: object) -> bool:
    """Whether a value is a list of messages: dicts with `role` and `content`, or ShareGPT's `from` and `value`."""
    if isinstance(value, Mapping):  # how a table keeps a list of dicts column by column
        return any(names <= set(value) and isinstance(value[min(names)], (list, tuple)) for names in _TURN)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return False
    return len(value) > 0 and all(isinstance(turn, Mapping) and any(names <= set(turn) for names in _TURN) for turn in value)


def check_template(tokenizer: PreTrainedTokenizerBase | None, what: str) -> None:
    """Checks that a tokenizer can write chats.

    Args:
        what: what holds the chats, for the message.

    Raises:
        ValueError: there is no tokenizer, or it has no chat template.
    """
    if tokenizer is None:
        raise ValueError(
            f"`processing_class` is missing: {what} holds chats, which a tokenizer writes by its chat template. Give one."
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{what} holds chats, and the tokenizer has no chat template to write them by. Give it one (`chat_template.jinja` in "
            "the model's folder, or `tokenizer.chat_template`), or name a column of plain text as `text_column`."
        )


def messages_of(value: Any) -> list[Row]:
    """Messages with `role` and `content` alone of whatever is set; what else a message holds (tool calls, say) stays."""
    if isinstance(value, Mapping):
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    messages = []
    for turn in value:
        # Tables fill in null where one message has a field and another has not.
        message = {name: part for name, part in turn.items() if part is not None}
        if "role" not in message:
            role = str(message.pop("from", "user"))
            message = {"role": _ROLES.get(role.lower(), role), "content": message.pop("value", "")} | message
        message["content"] = _words(message.get("content", ""))
        messages.append(message)
    return messages


def _words(content: object) -> str:
    """The words of a message: a text, parts (texts, or dicts with `text`, as beside images) joined, or a value written out."""
    if isinstance(content, (list, tuple)):
        return "".join(map(_words, content))
    if isinstance(content, Mapping):
        return str(content.get("text") or "")
    return str(content)


def as_messages(value: object, role: str) -> list[Row]:
    """The messages of one column: its own where it holds a chat, else its text as one message of this role."""
    return messages_of(value) if is_chat(value) else [{"role": role, "content": value}] if value else []


def render(messages: list[Row], tokenizer: PreTrainedTokenizerBase | None) -> str:
    """A chat as the model was trained to read it, special tokens included.

    Raises:
        ValueError: the template refuses it (roles that do not alternate, say).
    """
    if not messages:
        return ""
    assert tokenizer is not None  # see `check_template`
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, KeyError, AttributeError) as error:
        roles = ", ".join(str(message["role"]) for message in messages[:6])
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"The tokenizer's chat template refuses a chat with the roles {roles}: {reason}.") from None
