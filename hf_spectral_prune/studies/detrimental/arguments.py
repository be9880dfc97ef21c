"""DetrimentalArguments: how to find and remove detrimental neurons, as a dataclass for HfArgumentParser and YAML recipes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_type_hints

from ...arguments import _field
from ...utils.types import Json


@dataclass
class DetrimentalArguments:
    """Options of a run. `cria detrimental --help` prints each with its default.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    output_dir: str | None = _field(None, "Folder to write the pruned model, its plan and its report to.")
    overwrite_output_dir: bool = _field(False, "Replace the contents of `output_dir` if it is not empty.")

    shares: list[float] = _field(
        [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5],
        "Shares of a layer's FFN neurons to try to remove; those with the highest attribution are removed first.",
    )
    layers: list[int] | None = _field(None, "Layers to try, counted from 0; all by default.")
    num_steps: int = _field(20, "Number of midpoints on the path of a layer's gate weights from zero to their values.")
    max_steps: int = _field(
        180, "Maximum number of midpoints: more are added where the path bends, until the attributions of an example add up."
    )
    completeness_tolerance: float = _field(
        0.01, "Allowed error of that sum, as a share of the mean change; a larger remaining error is noted in the report."
    )
    normalisation: Literal["sum", "mean"] = _field(
        "sum", "Score of a choice: the sum of its tokens' log-probabilities, or their mean."
    )
    round_to: int = _field(
        1, "The pruned layer's width is kept at a multiple of this: 8 for speed, 32 for Q8_0/Q4_0 GGUF, 64 for GPU tiles."
    )
    batch_tokens: int = _field(2048, "Number of tokens per batch.")
    seed: int = _field(42, "Seed of the random choice of examples.")
    self_check: bool = _field(True, "After saving, reload the folder in a fresh process and compare its logits.")
    disable_tqdm: bool = _field(False, "Show no progress bars.")

    def __post_init__(self) -> None:
        if not self.shares or any(not 0 < share < 1 for share in self.shares):
            raise ValueError(
                f"`shares` is {self.shares}; give shares between 0 and 1, both excluded: a whole layer cannot be removed."
            )
        if len(set(self.shares)) < len(self.shares):
            raise ValueError(f"`shares` is {self.shares}; give each share once.")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"`layers` is {self.layers}; give each layer once, or leave it out for all.")
        for name in ("num_steps", "round_to", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.max_steps < self.num_steps:
            raise ValueError(f"`max_steps` is {self.max_steps}; it must be at least `num_steps` ({self.num_steps}).")
        if self.completeness_tolerance <= 0:
            raise ValueError(f"`completeness_tolerance` is {self.completeness_tolerance}; it must be above 0.")
        allowed = get_type_hints(type(self))["normalisation"].__args__
        if self.normalisation not in allowed:
            raise ValueError(f"`normalisation` is `{self.normalisation}`; choose `sum` or `mean`.")

    def to_dict(self) -> Json:
        """All options as plain values."""
        return asdict(self)


@dataclass
class TaskArguments:
    """Which examples the command reads.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    task_file: str | None = _field(
        None,
        "Labelled examples: .jsonl, .tsv or .csv (may be gzipped), or .parquet. The adaptation examples are drawn from it.",
    )
    task: str = _field(
        "jsonl", "Layout of the files: `jsonl` (prompt, choices, label), `boolq`, `copa`, `sst2`, `sst5`, `mmlu` or `xnli`."
    )
    held_out_file: str | None = _field(
        None, "Labelled examples to measure accuracy on; by default those of `task_file` that were not drawn."
    )
    num_adaptation_examples: int = _field(10, "Number of examples to find the neurons with; labels are drawn in turn.")
    num_held_out_examples: int = _field(300, "Maximum number of examples to measure accuracy on; 0 measures nothing.")

    def __post_init__(self) -> None:
        from .tasks import layout_of  # with torch, which `--help` does without

        layout_of(self.task)
        if self.num_adaptation_examples < 1:
            raise ValueError(f"`num_adaptation_examples` is {self.num_adaptation_examples}; it must be at least 1.")
        if self.num_held_out_examples < 0:
            raise ValueError(f"`num_held_out_examples` is {self.num_held_out_examples}; it must not be negative.")
