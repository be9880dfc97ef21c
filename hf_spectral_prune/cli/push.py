"""`cria push`: pushes a pruned folder to the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .parsing import parse, take_folder


@dataclass
class PushArguments:
    """Where to push to, by the names of `TrainingArguments`."""

    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repo on the Hub, e.g. your-name/cria-llama; created if it does not exist."}
    )
    hub_private_repo: bool = field(
        default=False, metadata={"help": "Make a new repo private; otherwise the owner's setting decides."}
    )
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Token for the Hub; it is safer to log in with `hf auth login` or to set HF_TOKEN."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace another model in the repo, with all its files; they stay in its history."}
    )
    commit_message: str | None = field(default=None, metadata={"help": "Commit message."})


def main(argv: Sequence[str]) -> None:
    """Pushes a pruned folder to the Hub in one commit, after checking that it is whole and as it was self-checked."""
    folder, words = take_folder("push", argv)
    (push,) = parse([PushArguments], "push FOLDER", main.__doc__ or "", words)
    assert folder is not None
    from ..publishing.hub import push_folder

    address = push_folder(
        folder, push.hub_model_id, push.hub_token, push.hub_private_repo or None, push.commit_message, push.overwrite
    )
    print(f"Pushed to {address}")
