"""PruningReport: every figure of a run, as `pruning_report.json` holds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_type_hints

from ..utils.files import parse_json
from ..utils.option_types import fitted
from ..utils.types import Json

# Written even where there is nothing to say; what else is None is left out.
_ALWAYS = ("recovery", "calibration", "evaluation", "self_check")
# What SpectralPruner says of its method; a run with a `method` of its own has other options.
_OPTIONS = ("target_reduction", "target_scope", "arguments.allocation", "arguments.compensation", "arguments.recovery")
# What an entry holds wherever it is there.
_WITHIN = {
    "recovery": ("kept", "metrics"),
    "calibration": ("source", "num_sequences"),
    "evaluation": ("source", "num_sequences"),
    "peak_memory": ("host", "accelerator"),
    "machine": ("system", "cpus", "torch_threads", "accelerator"),
    "macs": ("before", "after"),
    "lm_eval": ("version", "tasks"),
    "bounds": ("parameter_distance", "parameter_distance_bound", "groups"),
    "latency": tuple(f"{side}.{what}_tokens_per_second" for side in ("before", "after") for what in ("prefill", "decode")),
}


@dataclass(kw_only=True)
class PruningReport:
    """Every figure of a run, with its protocol.

    Attributes:
        target_reduction, target_scope: what was asked for; a run with a `method` of its own has none.
        sizes: {group key: [units before, units after]}.
        metrics_before, metrics_after: held-out figures `before_*` and `after_*`; empty where nothing was measured.
        recovery: the training after the last round, see `RecoveryOutput.report`; None without one.
        calibration, evaluation: protocols of the data, see `CalibrationData`; None without any.
        arguments: all options, tokens masked.
        timings: {step: seconds}.
        peak_memory, peak_memory_growth: bytes by place, in all and by step.
        base_model: see `base_model_facts`.
        self_check: {way of loading: figures}, see `check_in_fresh_process`; None before the model is saved, and with the check
            off.
        method, sources: sentences of a pruner of another method than SpectralPruner's, and the papers it names.
        detrimental: what the search for detrimental neurons found.
        macs: of models that read images, see `macs_report`.
        lm_eval: see `paired_figures` of `evaluation.tasks`; None where no task was asked for.
        bounds: of a plan by the criterion `ndi`, see `criteria.passes.ndi_bounds.PlanBounds`.
        samples: [{"text", "before", "after"}], see `evaluation.samples`; None where the run has none.
        latency, size_on_disk_before: of the dense model too, see `paired_latency`; None where they were not measured.
        files, written, size_on_disk: digests of the files that the self-check read, names of all that saving wrote, and bytes of
            the weights; None before the model is saved.
    """

    parameters_before: int
    parameters_after: int
    reduction: float
    target_reduction: float | None = None
    target_scope: str | None = None
    layout: str
    sizes: dict[str, list[int]]
    metrics_before: dict[str, float] = field(default_factory=dict)
    metrics_after: dict[str, float] = field(default_factory=dict)
    recovery: Json | None = None
    calibration: Json | None = None
    evaluation: Json | None = None
    notes: list[str] = field(default_factory=list)
    arguments: Json
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int] | None = None
    peak_memory_growth: dict[str, dict[str, int]] | None = None
    machine: dict[str, str | int]
    base_model: Json | None = None
    versions: dict[str, str]
    self_check: dict[str, Json] | None = None
    method: list[str] | None = None
    sources: list[str] | None = None
    detrimental: Json | None = None
    macs: Json | None = None
    lm_eval: Json | None = None
    bounds: Json | None = None
    samples: list[dict[str, str]] | None = None
    latency: dict[str, dict[str, float]] | None = None
    size_on_disk_before: int | None = None
    files: dict[str, Json] | None = None
    written: list[str] | None = None
    size_on_disk: int | None = None

    def __getitem__(self, name: str) -> Any:
        """A figure by its name in the file, as `ModelOutput` of transformers gives its own."""
        return getattr(self, name)

    def to_json(self) -> str:
        """JSON text, without the figures that the run does not have."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        kept = {name: value for name, value in entries.items() if value is not None or name in _ALWAYS}
        # What a protocol of the user's own may hold becomes text: a report is not worth the loss of a model.
        return json.dumps(kept, indent=2, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str, place: str = "The report") -> PruningReport:
        """Reads what `to_json` wrote, in this version or an earlier one; names that it does not know are left out.

        Args:
            place: what errors call it.

        Raises:
            ValueError: it is no JSON object, or lacks a figure that every run has (says which).
        """
        try:
            entries = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{place} is not JSON ({error}). Prune and save the model again.") from None
        if not isinstance(entries, dict):
            raise ValueError(f"{place} does not hold a JSON object. Prune and save the model again.")
        hints = get_type_hints(cls)
        for name in entries.keys() & hints.keys():
            try:
                fitted(name, entries[name], hints[name] | None)
            except ValueError as error:
                raise ValueError(f"{place}: {error} Take the report that the run wrote.") from None
        for path in _needed(entries):
            if not _has(entries, path):
                raise ValueError(
                    f"{place} has no figure `{path}`. Take the report that the run wrote, or prune and save the model again."
                )
        for name in ("parameters_before", "parameters_after"):
            if entries[name] < 1:
                raise ValueError(
                    f"{place}: `{name}` is {entries[name]}; it must be at least 1. Take the report that the run wrote."
                )
        return cls(**{entry.name: entries[entry.name] for entry in fields(cls) if entries.get(entry.name) is not None})


def _needed(entries: Json) -> Iterator[str]:
    """Dotted names of the figures that a report with these entries has."""
    yield from (entry.name for entry in fields(PruningReport) if entry.default is entry.default_factory is MISSING)
    if entries.get("method") is None:
        yield from _OPTIONS
    for name, within in _WITHIN.items():
        if entries.get(name) is not None:
            yield from (f"{name}.{path}" for path in within)
    for way in entries.get("self_check") or {}:
        yield f"self_check.{way}.max_abs_diff"


def _has(value: object, path: str) -> bool:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value is not None
