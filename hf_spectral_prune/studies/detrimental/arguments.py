"""DetrimentalArguments: how to find and remove detrimental neurons, as a dataclass for HfArgumentParser and YAML recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ...arguments import _field
from ...utils.option_values import choices
from ...utils.plain_options import PlainValues, check_hub_options


@dataclass
class DetrimentalArguments(PlainValues):
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
    weights: Literal["gate_proj", "up_proj", "down_proj"] = _field(
        "gate_proj", "The layer's weights that go from zero to their values; the published method takes `gate_proj`."
    )
    attribute_on: Literal["all", "wrong"] = _field(
        "all", "Adaptation examples that the attributions are averaged over: all, or those that the whole model answers wrongly."
    )
    num_steps: int = _field(20, "Number of midpoints on the path of a layer's weights from zero to their values.")
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
    push_to_hub: bool = _field(False, "Push the saved folder to the Hub in one commit; token and repo are checked first.")
    hub_model_id: str | None = _field(None, "Repo on the Hub to push to; created if it does not exist.")
    hub_private_repo: bool = _field(False, "Make a new repo private; otherwise the owner's setting decides.")
    # Kept out of the repr, and masked in `to_dict`.
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Token for the Hub; it is safer to log in with `hf auth login` or to set HF_TOKEN."},
    )
    report_to: list[str] | str = _field(["none"], "Loggers, as in TrainingArguments: tensorboard, wandb, trackio, ..., or none.")
    run_name: str | None = _field(None, "Name of the run for the loggers.")
    disable_tqdm: bool = _field(False, "Show no progress bars.")

    # What transformers' callbacks read: a run has one step, and says itself when it measures and logs.
    logging_strategy: ClassVar[str] = "steps"
    eval_strategy: ClassVar[str] = "no"
    save_strategy: ClassVar[str] = "no"
    logging_steps: ClassVar[int] = 1
    eval_steps: ClassVar[int] = 1
    save_steps: ClassVar[int] = 1
    eval_delay: ClassVar[int] = 0
    calibration_batch_size: ClassVar[int] = 1
    logging_first_step: ClassVar[bool] = False
    load_best_model_at_end: ClassVar[bool] = False
    metric_for_best_model: ClassVar[str | None] = None
    greater_is_better: ClassVar[bool | None] = None

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
        _check_choices(self, "normalisation", "weights", "attribute_on")
        check_hub_options(self)


def _check_choices(options: DetrimentalArguments | TaskArguments, *names: str) -> None:
    kind: Any = type(options)
    for name in names:
        allowed, given = choices(kind, name), getattr(options, name)
        if given not in allowed:
            raise ValueError(f"`{name}` is `{given}`; choose from {', '.join(f'`{value}`' for value in allowed)}.")


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
    dataset_name: str | None = _field(
        None, "Data set with labelled examples in the layout of `task`, instead of a file: its name on the Hub, or a folder."
    )
    dataset_config_name: str | None = _field(None, "Configuration of that data set.")
    dataset_split: str = _field("train", "Its split to draw the adaptation examples from.")
    eval_split: str | None = _field(None, "Its split to measure accuracy on; by default what was not drawn of `dataset_split`.")
    draw: Literal["balanced", "random"] = _field(
        "balanced", "How the adaptation examples are drawn: `balanced` takes labels in turn, `random` as they come."
    )
    num_adaptation_examples: int = _field(10, "Number of examples to find the neurons with.")
    num_held_out_examples: int = _field(300, "Maximum number of examples to measure accuracy on; 0 measures nothing.")

    def __post_init__(self) -> None:
        from .tasks import layout_of  # with torch, which `--help` does without

        layout_of(self.task)
        _check_choices(self, "draw")
        if self.task_file is not None and self.dataset_name is not None:
            raise ValueError("Both `task_file` and `dataset_name` are set. Give the examples once.")
        if self.eval_split is not None and self.dataset_name is None:
            raise ValueError("`eval_split` is a split of `dataset_name`. Set that, or give `held_out_file`.")
        if self.num_adaptation_examples < 1:
            raise ValueError(f"`num_adaptation_examples` is {self.num_adaptation_examples}; it must be at least 1.")
        if self.num_held_out_examples < 0:
            raise ValueError(f"`num_held_out_examples` is {self.num_held_out_examples}; it must not be negative.")
