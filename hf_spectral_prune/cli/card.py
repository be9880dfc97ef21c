"""`cria card`: writes or updates the model card of a pruned folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .parsing import parse, take_folder


@dataclass
class CardArguments:
    """What a folder cannot say by itself."""

    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the model that was pruned, if it was loaded from elsewhere."}
    )
    name: str | None = field(
        default=None, metadata={"help": "Repo id or name of the pruned model; by default the folder's name."}
    )


def main(argv: Sequence[str]) -> None:
    """Writes README.md of a pruned folder from the figures in it. Your own text and metadata in it are kept."""
    folder, words = take_folder("card", argv)
    (card,) = parse([CardArguments], "card FOLDER", main.__doc__ or "", words)
    assert folder is not None
    from ..publishing import write_card

    print(f"Wrote {write_card(folder, card.name, card.base_model)}")
