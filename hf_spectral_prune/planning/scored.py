"""What the scores of a round looked like: a few of them a group and the line of the cut, small enough for any folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..surgery.plan import PruningPlan
from ..utils.files import parse_json
from ..utils.words import in_a_line

FORMAT_VERSION = 1
SCORES_FILE = "pruning_scores.json"
# Scores that are kept of a group: enough to draw its distribution. Of rounds between the first and the last fewer are kept.
NUM_SCORES, NUM_SCORES_BETWEEN = 65, 9
_DIGITS = 6


@dataclass(frozen=True)
class GroupScores:
    """Scores of one group in one round.

    Attributes:
        units: how many there were.
        kept: how many stayed.
        largest_removed, smallest_kept: the line of the cut runs between these two scores; the first is None if all stayed.
        scores: ascending; all of them, or those at evenly spaced ranks from the smallest to the largest.
        spectrum: leading eigenvalues of the distortion, largest first; empty for criteria that have none.
    """

    units: int
    kept: int
    largest_removed: float | None
    smallest_kept: float
    scores: tuple[float, ...]
    spectrum: tuple[float, ...] = ()


# {group key: its scores} of one round.
RoundScores = dict[str, GroupScores]


def summarise(
    scores: Mapping[str, Tensor], plan: PruningPlan, diagnostics: Mapping[str, Mapping[str, Tensor]] | None = None
) -> RoundScores:
    """The round's scores and cut in short, to 6 significant digits.

    Args:
        scores: {group key: (n_units,)} that `plan` was chosen by.
        plan: of this round alone, in the numbering of the scores.
        diagnostics: {group key: {"spectrum": (m,)}} of the criterion, if it has any.
    """
    found = {}
    for key, kept in plan.kept.items():
        units = plan.sizes[key]
        stays = torch.zeros(units, dtype=torch.bool)
        stays[list(kept)] = True
        group = scores[key].double().cpu()
        ordered = group.sort().values
        found[key] = GroupScores(
            units=units,
            kept=len(kept),
            largest_removed=None if len(kept) == units else _rounded(group[~stays].max())[0],
            smallest_kept=_rounded(group[stays].min())[0],
            scores=_rounded(ordered[_ranks(units, NUM_SCORES)]),
            spectrum=_rounded((diagnostics or {}).get(key, {}).get("spectrum", torch.zeros(0))),
        )
    return found


def _ranks(count: int, most: int) -> Tensor:
    """At most `most` evenly spaced ranks of `count`, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values.reshape(-1).tolist())


def scores_to_json(rounds: Sequence[RoundScores], criterion: str) -> str:
    """JSON text of all rounds, a group a line; rounds between the first and the last keep fewer numbers."""
    blocks = []
    for index, groups in enumerate(rounds):
        if 0 < index < len(rounds) - 1:
            groups = {key: _thinned(group) for key, group in groups.items()}
        rows = ",\n".join(f"      {json.dumps(key)}: {json.dumps(asdict(group))}" for key, group in groups.items())
        blocks.append(f"    {{\n{rows}\n    }}")
    head = json.dumps({"format_version": FORMAT_VERSION, "criterion": criterion}, indent=2)[:-2]
    return f'{head},\n  "rounds": [\n' + ",\n".join(blocks) + "\n  ]\n}\n"


def _thinned(group: GroupScores) -> GroupScores:
    scores = tuple(group.scores[rank] for rank in _ranks(len(group.scores), NUM_SCORES_BETWEEN))
    return replace(group, scores=scores)


def scores_from_json(text: str) -> list[RoundScores]:
    """Reads what `scores_to_json` wrote.

    Raises:
        ValueError: it is something else, or a format of another version.
    """
    try:
        payload = parse_json(text)
        version = payload["format_version"]
        rounds = [{key: _group(**fields) for key, fields in groups.items()} for groups in payload["rounds"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = in_a_line(error)
        raise ValueError(f"These are no scores of a pruning run ({reason}). Take the file that the run wrote.") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"The scores have format {version}, this package reads {FORMAT_VERSION}. Prune the model again.")
    return rounds


def _group(
    units: int,
    kept: int,
    largest_removed: float | None,
    smallest_kept: float,
    scores: Sequence[float],
    spectrum: Sequence[float] = (),
) -> GroupScores:
    removed = None if largest_removed is None else float(largest_removed)
    if not 0 < kept <= units or not scores:
        raise ValueError(f"{kept} of {units} units kept, {len(scores)} scores")
    return GroupScores(
        int(units), int(kept), removed, float(smallest_kept), tuple(map(float, scores)), tuple(map(float, spectrum))
    )
