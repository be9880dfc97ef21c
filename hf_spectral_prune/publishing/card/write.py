"""The model card: metadata and text from the figures in a saved folder, put into whatever README.md is there already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ...utils.files import read_within, write_text
from ...utils.types import Json
from ...utils.words import in_a_line
from ...utils.yaml_text import load_yaml
from ..formats import percent
from ..saved_folder import README, SavedFolder, figures_told, read_folder
from . import tables as card_tables
from . import words
from .base_model import CARRIED_OVER, base_model_facts
from .markdown import cell, code, escaped, link, prose

TEMPLATE = Path(__file__).with_name("card_template.md")
BEGIN = "<!-- cria card: `cria card` rewrites what stands between this mark and the next; write outside of them -->"
END = "<!-- end of cria card -->"
_BEGIN_PATTERN = re.compile(r"<!-- cria card:.*?-->")
_CODE_BLOCK = re.compile(r"^(```|~~~).*?^\1", flags=re.MULTILINE | re.DOTALL)
# Order of a new card's metadata.
_KEYS = ("base_model", "base_model_relation", "license", "license_name", "license_link", "language", "datasets", "library_name")
_MOST = 10 * 2**20  # bytes of a README.md that is kept
_PROTOCOL = ("max_seq_length", "packing", "num_sequences", "num_tokens", "seed")
# Endings of our own entries in `model-index`: they are replaced, others are kept.
_LM_EVAL = "https://github.com/EleutherAI/lm-evaluation-harness"
_AFTER, _BEFORE = "after pruning", "base model before pruning"


@dataclass(frozen=True)
class ExistingCard:
    """A README.md taken apart: its metadata, and its text without our section.

    Attributes:
        metadata: the YAML block.
        order: its keys as they stand.
        before, after: text before and behind our section; without a section, all text is `before`.
    """

    metadata: ModelCardData = field(default_factory=ModelCardData)
    order: tuple[str, ...] = ()
    before: str = ""
    after: str = ""

    @property
    def own_text(self) -> str:
        """What the user wrote."""
        return "\n\n".join(part for part in (self.before, self.after) if part)

    @property
    def has_title(self) -> bool:
        """Whether that has a title: a first-level heading, outside of code."""
        return re.search(r"^# ", _CODE_BLOCK.sub("", self.own_text), flags=re.MULTILINE) is not None


def readme_text(folder: Path) -> str | None:
    """Text of a folder's README.md; None if it has none.

    Raises:
        ValueError: it is not UTF-8, or far larger than a card.
    """
    file = folder / README
    if not file.is_file():
        return None
    return read_within(file, _MOST)


def read_card(text: str | None, place: str | Path = README) -> ExistingCard:
    """Takes a README.md apart.

    Args:
        text: its whole text, or None if there is none.
        place: what errors call it.

    Raises:
        ValueError: its metadata cannot be read, or our marks in it are broken.
    """
    if not (text or "").strip():
        return ExistingCard()
    text = str(text).removeprefix("\ufeff").replace("\r\n", "\n").lstrip("\n")
    text = text if text.startswith("---\n") else f"---\n{{}}\n---\n{text}"
    block = REGEX_YAML_BLOCK.search(text)
    try:
        load_yaml(block[2] if block else "")  # its bounds, which the client's own reading does not have
        card = ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"The metadata of `{place}` cannot be read ({in_a_line(error)}). Mend the YAML at its top.") from None
    data: Any = card.data
    order = tuple(card._original_order)
    begins, ends = list(_BEGIN_PATTERN.finditer(card.text)), list(re.finditer(re.escape(END), card.text))
    if not begins and not ends:
        return ExistingCard(data, order, card.text.strip("\n"))
    if len(begins) != 1 or len(ends) != 1 or ends[0].start() < begins[0].end():
        raise ValueError(
            f"`{place}` has {len(begins)} begin and {len(ends)} end marks of the generated card, and needs one of each in that "
            "order. Take all out to have the card added at the end."
        )
    before, after = card.text[: begins[0].start()].strip("\n"), card.text[ends[0].end() :].strip("\n")
    return ExistingCard(data, order, before, after)


def build_card(saved: SavedFolder, name: str, existing: ExistingCard | None = None, base_model: Json | None = None) -> str:
    """The whole text of README.md for a saved folder. Building it again on its own result changes nothing.

    Args:
        name: what to call the model and to load it by: a repo id or a folder.
        existing: the README.md to update. Its text and metadata are kept, except what this card knows better: base model,
            own figures.
        base_model: facts of `base_model_facts`, in place of those that the report has.

    Raises:
        ValueError: a figure is missing that every run has; names the figure, the file and the remedy.
    """
    existing = existing or ExistingCard()
    facts = base_model or saved.report.base_model or {}
    data = _merged(existing.metadata, _metadata(saved, name, facts), _results(saved))
    base_id = next(iter(_listed(data.base_model)), None)
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **_context(saved, name)
        | {
            # A card reads as one document: where the user has a title of their own, ours is left out.
            "title": None if existing.has_title else escaped(name),
            "base": _base_words(base_id, facts.get("name")),
            "licence": _licence_words(data),
        },
    )
    section = re.sub(r"\n{3,}", "\n\n", card.text).strip("\n")
    parts = [existing.before, f"{BEGIN}\n\n{section}\n\n{END}", existing.after]
    text = "\n\n".join(part for part in parts if part)
    return f"---\n{data.to_yaml(original_order=[*existing.order, *_KEYS])}\n---\n\n{text}\n"


def write_card(folder: str | Path, name: str | None = None, base_model: str | None = None, existing: str | None = None) -> Path:
    """Writes README.md into a saved folder, or brings the one that is there up to date.

    Args:
        name: repo id, or None for the folder's name.
        base_model: id on the Hub of the model that was pruned, where the run could not know it.
        existing: text of a README.md to update in place of the folder's own.

    Raises:
        FileNotFoundError, ValueError: the folder or a figure in it is missing (says which), or see `read_card`.
    """
    saved = read_folder(folder)
    file = saved.path / README
    if file.is_dir():
        raise ValueError(f"`{file}` is a folder, and the card is a file. Move it away.")
    existing = readme_text(saved.path) if existing is None else existing
    facts = None if base_model is None else base_model_facts(None, base_model)
    before = read_card(existing, file)
    with figures_told(saved.path):
        text = build_card(saved, name or saved.path.resolve().name, before, facts)
    write_text(file, text)
    return file


# ---- metadata


def _metadata(saved: SavedFolder, name: str, facts: Json) -> Json:
    base = facts.get("hub_id")
    dataset = _hub_dataset(saved.report.calibration)
    return {
        "base_model": base,
        "base_model_relation": "finetune" if base else None,
        "library_name": "pytorch" if words.network(saved) else "transformers",
        "pipeline_tag": words.pipeline_tag(saved),
        **{key: facts.get(key) for key in CARRIED_OVER},
        "datasets": [dataset] if dataset else None,
        "tags": ["cria", "pruned", "structured-pruning", "hf_spectral_prune"],
        "model_name": name,
    }


def _hub_dataset(protocol: Json | None) -> str | None:
    """The id of a data set on the Hub that a protocol names, `OWNER/NAME:SPLIT`. Files have no owner, and of folders the
    commands write `./a/b`; a folder that was named otherwise is told by lying here."""
    found = re.fullmatch(r"(\w[\w.-]*/[\w.-]+):[\w.\[\]:%+-]+", (protocol or {}).get("source") or "")
    return found[1] if found and not Path(found[1]).is_dir() else None


def _results(saved: SavedFolder) -> list[EvalResult]:
    """Entries of `model-index`: every finite metric after and before pruning, with the protocol of its data."""
    protocol = saved.report.evaluation or {}
    source = protocol.get("source") or "evaluation data of the run"
    dataset = _hub_dataset(protocol)
    task = words.pipeline_tag(saved) or "other"
    args = {key: protocol[key] for key in _PROTOCOL if protocol.get(key) is not None}
    if args.get("num_tokens") == 0:  # images
        del args["num_tokens"]
    shared: Json = {
        "task_type": task,
        "task_name": task.replace("-", " ").capitalize(),
        "dataset_type": dataset or re.sub(r"[^\w.-]+", "-", source).strip("-"),
        "dataset_name": source,
        "dataset_split": protocol.get("split"),
        "dataset_args": args or None,
    }
    held_out = [
        EvalResult(metric_type=metric, metric_value=value, metric_name=f"{metric}, {side}", **shared)
        for metric, before, after in card_tables.metrics(saved)
        for side, value in ((_AFTER, after), (_BEFORE, before))
        if words.finite(value)
    ]
    return held_out + _task_results(saved)


def _task_results(saved: SavedFolder) -> list[EvalResult]:
    """Entries of `model-index` for the tasks of lm_eval, after and before pruning."""
    found = saved.report.lm_eval
    if found is None:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=entry.get("dataset") or task,
            dataset_name=task,
            dataset_args={key: entry[key] for key in ("items", "num_fewshot") if entry.get(key) is not None} or None,
            metric_type=metric,
            metric_value=value,
            metric_name=f"{metric}, {side}",
            source_name=f"lm_eval {found['version']}",
            source_url=_LM_EVAL,
        )
        for task, entry in found["tasks"].items()
        for side, values in ((_AFTER, entry["after"]), (_BEFORE, entry["before"]))
        for metric, value in values.items()
        if words.finite(value)
    ]


def _merged(theirs: ModelCardData, ours: Json, results: Sequence[EvalResult]) -> ModelCardData:
    """Metadata in one: the user's word stands, except on the base model; tags and data sets are joined."""
    kept = {key: value for key, value in theirs.__dict__.items() if value is not None}
    merged = ours | kept | {key: ours[key] for key in ("base_model", "base_model_relation") if ours[key] is not None}
    for key in ("tags", "datasets"):
        both = [*_listed(kept.get(key)), *_listed(ours[key])]
        merged[key] = list(dict.fromkeys(both)) or None
    others = [result for result in kept.get("eval_results") or [] if not _is_ours(result)]
    merged["eval_results"] = [*others, *results] or None
    if not (others and kept.get("model_name")):
        merged["model_name"] = ours["model_name"] if merged["eval_results"] else None
    return ModelCardData(**merged)


def combined(theirs: ModelCardData, ours: ModelCardData) -> ModelCardData:
    """The metadata of two cards of one model: where both say something, `ours` counts; lists are joined."""
    first, second = ({key: value for key, value in data.__dict__.items() if value is not None} for data in (theirs, ours))
    lists = {
        key: list(dict.fromkeys([*_listed(first.get(key)), *_listed(second.get(key))])) or None for key in ("tags", "datasets")
    }
    results = first.get("eval_results") or []
    mine = second.get("eval_results") or []
    lists["eval_results"] = [*(result for result in results if result not in mine), *mine] or None
    return ModelCardData(**first | second | lists)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_ours(result: EvalResult) -> bool:
    return (result.metric_name or "").endswith((f", {_AFTER}", f", {_BEFORE}"))


# ---- text


def _context(saved: SavedFolder, name: str) -> Json:
    """What the template is filled with; text that may come from others is escaped here."""
    kinds, width_rows = card_tables.width_table(saved)
    cria = words.is_cria(saved)
    sentences = {
        "reduction": percent(saved.report.reduction),
        "units": " and ".join(kind.lower().replace("ffn", "FFN") for kind in card_tables.cut_kinds(saved)) or "none in the end",
        "calibration": words.calibration_words(saved),
        "cost": words.cost_words(saved),
        "evaluation": words.protocol_words(saved.report.evaluation) or "the evaluation data of the run",
        "self_check": words.self_check_words(saved),
        "lm_eval": words.lm_eval_words(saved.report),
    }
    lists = {"method": words.method_lines(saved), "limits": words.limit_lines(saved)}
    tables = {"size_rows": card_tables.size_rows(saved), "width_rows": width_rows, "metric_rows": card_tables.metric_rows(saved)}
    tables |= {"speed_rows": card_tables.speed_rows(saved), "task_rows": card_tables.task_rows(saved.report)}
    sample_head, samples = card_tables.sample_rows(saved)
    return {
        **{key: value and prose(value) for key, value in sentences.items()},
        **{key: [prose(line) for line in lines] for key, lines in lists.items()},
        **{key: [[cell(entry) for entry in row] for row in rows] for key, rows in tables.items()},
        "kinds": [cell(kind) for kind in kinds],
        "unclear_speed": card_tables.is_unclear(card_tables.speed_rows(saved)),
        "sample_head": sample_head,
        "sample_rows": [[escaped(entry) for entry in row] for row in samples],
        "plots": _plots(saved.path),
        "cria": cria,
        "network": words.network(saved),
        "architecture": code(words.architecture(saved)),
        "code": words.loading_code(saved, name, remote=False) + words.usage_code(saved),
        "remote_code": words.loading_code(saved, name, remote=True) + words.usage_code(saved) if cria else None,
        "machine": escaped(words.machine_words(saved)),
        "versions": escaped(", ".join(f"{library} {version}" for library, version in saved.report.versions.items())),
        "criterion": code(saved.plan.criterion),
        "sources": saved.report.sources or words.sources(saved.plan.criterion),
    }


def _plots(folder: Path) -> list[dict[str, str]]:
    """Plots of the widths in the folder, with their text alternatives."""
    files = sorted(folder.glob("plots/widths*.png"))
    text = "Width of every layer before and after pruning, as in the table above"
    return [{"text": text, "path": file.relative_to(folder).as_posix()} for file in files]


def _base_words(hub_id: object, name: str | None) -> str:
    if hub_id is not None:
        return link(code(str(hub_id)), f"https://huggingface.co/{hub_id}") or code(str(hub_id))
    return code(name) if name else "a base model that the run did not name,"


def _licence_words(data: ModelCardData) -> str:
    if data.license is None:
        return (
            "The base model's licence was not known when this card was made. Look it up before you use or share this model, "
            "and set `license` in the metadata of this card."
        )
    text = link("text", str(data.license_link)) or (code(str(data.license_link)) if data.license_link else "")
    named = code(str(data.license_name or data.license))
    return f"{named}{f' ({text})' if text else ''}. The weights derive from the base model; see its card for the terms."
