"""SpectralPruningArguments: how to prune, as a dataclass for HfArgumentParser and YAML recipes."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from .utils.option_values import as_json, choices, json_option
from .utils.plain_options import PlainValues, check_hub_options
from .utils.types import Json
from .utils.words import listed

# A round scores and cuts: more than this is a slip of the finger, and would fill the memory before the first.
_MOST_ROUNDS = 10_000
_LARGEST_SEED = 2**32 - 1  # NumPy's

# Allocations that measure a loss (or look for the least) on calibration data.
MEASURED_ALLOCATIONS = ("loss_curves", "fisher", "search")
# Recoveries that are taught by the dense model.
TAUGHT_RECOVERIES = ("distill", "blocks")


def _field(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help text that `cria ... --help` prints."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


# Named sets of options.
PRESETS: dict[str, Json] = {
    # arXiv:2605.18860: dominant modes, scores anew after every cut, no update of the weights in between, one training at the end.
    # A tenth of the modes: a fixed number does not carry over from one width to another.
    "paper": {
        "criterion": "spectral",
        "criterion_args": {"modes": 0.1},
        "num_rounds": 10,
        "recalibrate_every": 1,
        "compensation": "none",
        "recovery": "full",
    },
    # The best of what was measured (docs/results.md): widths and scores both know the loss. The result is a Cria class.
    "quality": {"layout": "per_layer", "criterion": "spectral", "criterion_args": {"signals": "loss"}},
    # A first look in a minute: little text, equal shares (nothing is measured), no repair but the cheap one.
    "fast": {
        "allocation": "proportional",
        "compensation": "least_squares",
        "num_calibration_samples": 16,
        "max_seq_length": 256,
        "self_check": False,
    },
}


def should_rise(metric: str) -> bool:
    """Whether more of a metric is better, where nobody says: as for TrainingArguments, which knows no perplexity."""
    return not metric.endswith(("loss", "perplexity"))


def preset_options(name: str) -> Json:
    """A copy of the options of a preset.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"`preset` is `{name}`; choose from {', '.join(f'`{known}`' for known in PRESETS)}.")
    return copy.deepcopy(PRESETS[name])


@dataclass(kw_only=True)
class LmEvalArguments:
    """Which tasks of EleutherAI's lm_eval to measure.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    lm_eval: list[str] | None = _field(
        None,
        "Tasks of EleutherAI's lm_eval to measure a causal language model on, e.g. `hellaswag,piqa`; a pruning run measures "
        "before and after. Needs `pip install lm_eval`.",
    )
    lm_eval_limit: int | None = _field(None, "Number of items of each of these tasks; by default all.")
    lm_eval_include_path: str | None = _field(None, "Folder with task files (.yaml) of your own for lm_eval.")

    def __post_init__(self) -> None:
        tasks: Any = self.lm_eval
        if tasks is not None:
            words = [tasks] if isinstance(tasks, str) else tasks
            self.lm_eval = " ".join(words).replace(",", " ").split()
        if self.lm_eval is not None and (not self.lm_eval or len(set(self.lm_eval)) != len(self.lm_eval)):
            raise ValueError(f"`lm_eval` is {tasks}; name each task once, e.g. `hellaswag,piqa`.")
        if self.lm_eval_limit is not None and self.lm_eval_limit < 1:
            raise ValueError(f"`lm_eval_limit` is {self.lm_eval_limit}; it must be at least 1.")
        for name in ("lm_eval_limit", "lm_eval_include_path"):
            if getattr(self, name) is not None and self.lm_eval is None:
                raise ValueError(f"`{name}` is set, but `lm_eval` names no task. Set it too, or leave `{name}` out.")


@dataclass
class SpectralPruningArguments(PlainValues, LmEvalArguments):
    """Options of a pruning run. `cria prune --help` prints each with its default.

    The field names that transformers' callbacks read (`logging_strategy`, `eval_strategy`, `save_strategy`, ...) are those
    of `TrainingArguments`; one step is one pruning round.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    output_dir: str | None = _field(None, "Folder to write the pruned model, its plan and its report to.")
    overwrite_output_dir: bool = _field(False, "Replace the contents of `output_dir` if it is not empty.")

    target_reduction: float = _field(0.2, "Fraction to remove, between 0 and 1; `target_scope` says of what.")
    target_reductions: list[float] | None = _field(
        None,
        "Several fractions from one run, e.g. 0.1 0.2 0.3, instead of `target_reduction`: each result is saved in a folder of "
        "its own in `output_dir`, and a larger one keeps no unit that a smaller one has removed.",
    )
    target_bytes: float | None = _field(
        None,
        "Bytes that the weights, and the key/value cache of one sequence at `target_context`, may take at the most, instead of "
        "`target_reduction`.",
    )
    target_context: int = _field(0, "Number of positions at which `target_bytes` counts the key/value cache; 0 counts none.")
    target_tokens_per_second: float | None = _field(
        None,
        "Speed at which the model is to decode one sequence on this machine, instead of `target_reduction`: copies are cut and "
        "timed to find the least reduction that reaches it.",
    )
    scores: str | None = _field(
        None,
        "File that a run with `save_scores` wrote: its scores and allocation are used. Model, data and options must be its own.",
    )
    save_scores: str | None = _field(None, "File (.npz) to write the scores and the allocation to, for runs with other targets.")
    target_scope: Literal["all", "non_embedding", "prunable", "units", "flops"] = _field(
        "prunable",
        "What the fraction is of: the parameters of the `units` (`prunable`), those outside the embeddings, all parameters (tied "
        "weights once), the number of `units`, or the FLOPs of one image.",
    )
    units: list[str] | None = _field(
        None,
        "Kinds of unit to remove: `ffn` neurons and `heads` (key/value groups), or `channels`; by default all that the model's "
        "family has.",
    )
    layout: Literal["uniform", "per_layer"] = _field(
        "uniform",
        "`uniform`: one width for all layers, a stock class that loads anywhere; `per_layer`: a width for each layer, a Cria "
        "class.",
    )
    uniform_heads: bool = _field(
        False,
        "With `per_layer`: the same number of heads in all layers, so that only FFN widths differ. More programs can read such a "
        "config.",
    )
    criterion: str = _field(
        "spectral",
        "Importance criterion: spectral, energy, activation, activation_weights, fluctuation, magnitude, taylor, fisher, obs, "
        "ndi, integrated_gradients or random; or one that an installed package adds.",
    )
    criterion_args: Json | str | None = _field(None, "Options of the criterion as JSON, e.g. '{\"num_neighbors\": 30}'.")
    allocation: Literal["auto", "proportional", "scores", "loss_curves", "fisher", "search"] = _field(
        "auto",
        "How much to remove from each group. `proportional`: equal shares. `scores`: rank the scores of all groups together "
        "(they must be comparable across layers, as loss-aware ones are). `loss_curves`: by the measured loss of cutting "
        "(`per_layer`: each group alone; `uniform`: one kind of unit in all layers). `fisher`: rank the units of all groups by "
        "their Fisher information, whatever the criterion. `search`: by trials that compare the compensated "
        "model's outputs with the dense one's (`per_layer`: beginning with `fisher`; `uniform`: with equal shares). `auto`: "
        "`search` with the sequential compensation, else `loss_curves`; for `uniform`, equal shares if the calibration data give "
        "no loss.",
    )
    rank_by: Literal["cost", "importance"] = _field(
        "cost",
        "What goes first where the units of all layers are ranked together (`per_layer` with `allocation` `scores` or `fisher`): "
        "the least importance per parameter (or FLOP), or the least importance itself.",
    )
    num_allocation_samples: int | None = _field(
        None,
        "Number of calibration sequences to measure loss curves or to search on; by default as many as give 2,000 targets (4 of "
        "512 tokens; 256 if a sequence has one label), and 8,000 for a search.",
    )
    num_rounds: int = _field(1, "Number of rounds of scoring, choosing and cutting; each removes an equal share.")
    reallocate: bool = _field(
        False,
        "Measure or rank anew in every round how much goes from which group; otherwise the first round decides that for all.",
    )
    recalibrate_every: int = _field(
        1,
        "Rounds between calibration passes; the rounds in between score again from the remaining moments, with no forward pass.",
    )
    compensation: Literal["auto", "none", "bias", "least_squares", "sequential"] = _field(
        "auto",
        "Closed-form adjustment of the remaining weights after a cut, without training. `bias`: add the mean of the removed "
        "contributions to the biases. `least_squares`: refit the consumer columns of each layer by itself. `sequential`: refit "
        "them layer by layer on the output of the layers cut before, so that the residual stream stays close to the dense one. "
        "`auto`: `sequential` for transformers with calibration data (`least_squares` for those known by structure only); none "
        "for channels, without data, and inside a Trainer.",
    )
    ridge: float = _field(
        1e-2,
        "Ridge of `least_squares`, as a share of the mean second moment; `sequential` chooses its own ridge on held-out rows.",
    )
    round_to: int | None = _field(
        None,
        "FFN widths and numbers of channels are kept at multiples of this: 8 for speed, 32 for Q8_0/Q4_0 GGUF, 64 for GPU tiles. "
        "Without it 8, or less in a model so small that a step of 8 would be more than half of the target.",
    )
    min_ffn_units: int = _field(8, "Smallest FFN width of a layer.")
    min_kv_groups: int = _field(1, "Smallest number of key/value groups of a layer.")
    min_channels: int = _field(8, "Smallest number of channels (or of neurons of a plain network) of a layer.")
    stock_class: Literal["auto", "mistral"] = _field(
        "auto", "Class of a uniform result: the model's own, or `mistral` (any head count; only for Llama without biases)."
    )
    num_calibration_samples: int = _field(128, "Number of calibration sequences or images.")
    max_seq_length: int = _field(512, "Length of a sequence in tokens, for calibration and evaluation.")
    calibration_batch_size: int = _field(8, "Number of sequences or images per batch.")
    max_moment_gib: float | None = _field(
        None,
        "Memory limit in GiB for calibration moments; by default half of the free memory of the model's device. If they need "
        "more, calibration runs in several parts of fewer layers each, and only one part is held at a time.",
    )
    stop_metric: str | None = _field(
        None,
        "Metric that stops the rounds, e.g. `eval_accuracy` or `eval_perplexity`: a round that would make it worse by more "
        "than `stop_drop` is left out, and the last good plan is kept. Measured with the units masked, before any cut or "
        "compensation.",
    )
    stop_drop: float = _field(0.01, "How much worse `stop_metric` may get than before pruning (absolute).")
    recovery: Literal["none", "full", "lora", "distill", "blocks"] = _field(
        "none",
        "Training after the last round: all weights, LoRA adapters that are merged, distillation from the dense model, or "
        "`blocks`: one layer after the other toward the dense residual stream, in the memory of one layer and without labels.",
    )
    recovery_args: Json | str | None = _field(
        None, "Options of the recovery (RecoveryArguments) as JSON, e.g. '{\"lora_r\": 8}'."
    )
    training_args: Json | str | None = _field(
        None, 'TrainingArguments of the recovery as JSON, e.g. \'{"max_steps": 500, "learning_rate": 1e-4}\'.'
    )
    seed: int = _field(42, "Seed of everything random.")
    self_check: bool = _field(True, "After saving, reload the folder in a fresh process and compare its logits.")
    push_to_hub: bool = _field(False, "Push the saved folder to the Hub in one commit; token and repo are checked first.")
    hub_model_id: str | None = _field(
        None, "Repo on the Hub to push to, e.g. your-name/cria-llama; created if it does not exist."
    )
    hub_private_repo: bool = _field(False, "Make a new repo private; otherwise the owner's setting decides.")
    # Kept out of the repr, and masked in `to_dict`: no log and no file may show it.
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Token for the Hub; it is safer to log in with `hf auth login` or to set HF_TOKEN."},
    )

    logging_strategy: Literal["no", "steps"] = _field("steps", "Log after every round.")
    logging_steps: int = _field(1, "Rounds between logs.")
    logging_first_step: bool = _field(False, "Log the first round even if `logging_steps` would skip it.")
    eval_strategy: Literal["no", "steps"] = _field("no", "Evaluate during the run: `steps` evaluates every `eval_steps` rounds.")
    eval_steps: int = _field(1, "Rounds between evaluations.")
    eval_delay: int = _field(0, "Rounds before the first evaluation.")
    save_strategy: Literal["no", "steps"] = _field(
        "no",
        "`steps`: write a checkpoint that the run can resume from whenever a calibration pass is due; they go when the result is "
        "saved. Those of a recovery are asked for in `training_args`.",
    )
    save_steps: int = _field(1, "Rounds between checkpoints.")
    metric_for_best_model: str | None = _field(None, "Metric that callbacks such as early stopping watch.")
    greater_is_better: bool | None = _field(None, "Whether that metric should rise.")
    load_best_model_at_end: bool = _field(False, "Not used by pruning itself; only for callbacks that check it.")
    report_to: list[str] | str = _field(["none"], "Loggers, as in TrainingArguments: tensorboard, wandb, trackio, ..., or none.")
    run_name: str | None = _field(None, "Name of the run for the loggers.")
    disable_tqdm: bool = _field(False, "Show no progress bars.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in fields(self):
            setattr(self, each.name, as_json(getattr(self, each.name)))
        for name in ("criterion_args", "recovery_args", "training_args"):
            setattr(self, name, json_option(name, getattr(self, name)))
        if self.output_dir == "":
            raise ValueError("`output_dir` is empty. Name a folder, or leave it out.")
        if isinstance(self.output_dir, (str, os.PathLike)):  # as Trainer's; a recipe or Python has no shell to do it
            self.output_dir = os.path.expanduser(self.output_dir)
        self._check_range("target_reduction", 0, 1, open_ends=True)
        self._check_targets()
        for name in (
            "recalibrate_every",
            "min_ffn_units",
            "min_kv_groups",
            "min_channels",
            "num_calibration_samples",
            "calibration_batch_size",
            "logging_steps",
            "eval_steps",
            "save_steps",
        ):
            self._check_range(name, 1)
        self._check_range("max_seq_length", 2)
        for name in ("num_allocation_samples", "round_to"):
            if getattr(self, name) is not None:
                self._check_range(name, 1)
        self._check_range("num_rounds", 1, _MOST_ROUNDS)
        self._check_range("seed", 0, _LARGEST_SEED)
        for name in ("ridge", "stop_drop"):
            self._check_finite(name, 0)
        if self.max_moment_gib is not None:
            self._check_finite("max_moment_gib", None)
        for name in ("target_scope", "layout", "allocation", "rank_by", "compensation", "stock_class", "recovery"):
            self._check_choice(name)
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            self._check_choice(name, " A step is a round, so `steps` takes the place of `epoch`.")
        units: Any = self.units
        if isinstance(units, str):
            self.units = units.replace(",", " ").split()
        if self.units is not None and (not self.units or len(set(self.units)) != len(self.units)):
            raise ValueError(f"`units` is {self.units}; give each kind once, e.g. `ffn heads`.")
        self._check_layout()
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = should_rise(self.metric_for_best_model)
        check_hub_options(self)
        if self.save_strategy != "no" and self.output_dir is None:
            raise ValueError('`save_strategy="steps"` needs a folder for its checkpoints. Set `output_dir`.')

    def _check_layout(self) -> None:
        """Options that go with one layout or allocation alone."""
        if self.stock_class == "mistral" and self.layout == "per_layer":
            raise ValueError('`stock_class="mistral"` is for uniform results. Use `layout="uniform"` or leave it out.')
        if self.uniform_heads and self.layout != "per_layer":
            raise ValueError('`uniform_heads` is for `layout="per_layer"`; a uniform layout has them anyway. Leave it out.')
        if self.rank_by == "importance" and (self.layout != "per_layer" or self.allocation not in ("scores", "fisher")):
            raise ValueError(
                '`rank_by="importance"` is for one ranking over all layers. Use `layout="per_layer"` with `allocation` `scores` '
                "or `fisher`, or leave it out."
            )
        if self.layout == "per_layer" and self.allocation == "proportional":
            raise ValueError(
                '`allocation="proportional"` gives all layers one width. Use `layout="uniform"` or another allocation.'
            )

    @classmethod
    def from_preset(cls, name: str, **options: Any) -> Self:
        """The options of a preset (see `PRESETS`); those that are given win. `--preset NAME` does it on the command line.

        Raises:
            ValueError: no such preset; or see the class.
        """
        return cls(**preset_options(name) | options)

    def _check_targets(self) -> None:
        targets = self.target_reductions or []
        if any(not 0 < target < 1 for target in targets) or len(set(targets)) < len(targets):
            raise ValueError(f"`target_reductions` is {targets}; give each once, between 0 and 1, both excluded.")
        if targets and self.push_to_hub:
            raise ValueError("`push_to_hub` is for one result. Push each folder of `target_reductions` with `cria push`.")
        if self.target_bytes is not None:
            self._check_finite("target_bytes", None)
        if self.target_tokens_per_second is not None:
            self._check_finite("target_tokens_per_second", None)
        given = [name for name in ("target_bytes", "target_tokens_per_second", "target_reductions") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"Both `{given[0]}` and `{given[1]}` are set. Give one of them.")
        self._check_range("target_context", 0)
        if self.target_context and self.target_bytes is None:
            raise ValueError("`target_context` is the length of the cache that `target_bytes` counts. Set that too.")
        for name in ("target_reductions", "scores", "save_scores"):
            if getattr(self, name) and self.num_rounds > 1:
                raise ValueError(
                    f"`{name}` is for runs of one round, which cut by the scores of the dense model. Leave out `num_rounds`."
                )

    @property
    def repairs(self) -> bool:
        """Whether a compensation is asked for by name."""
        return self.compensation not in ("auto", "none")

    @property
    def criterion_options(self) -> Json:
        """`criterion_args` as a dict."""
        assert isinstance(self.criterion_args, dict)
        return dict(self.criterion_args)

    def _check_range(self, name: str, low: float, high: float = float("inf"), open_ends: bool = False) -> None:
        value = getattr(self, name)
        inside = low < value < high if open_ends else low <= value <= high
        if not inside:
            words = f"between {low} and {high:,}" if math.isfinite(high) else f"at least {low}"
            raise ValueError(f"`{name}` is {value}; it must be {words}{', both excluded' if open_ends else ''}.")

    def _check_finite(self, name: str, least: float | None) -> None:
        """A finite number of at least `least`, or above 0 where that is None."""
        value = getattr(self, name)
        if not math.isfinite(value) or (value <= 0 if least is None else value < least):
            raise ValueError(
                f"`{name}` is {value}; it must be a finite number {'above 0' if least is None else f'of at least {least}'}."
            )

    def _check_choice(self, name: str, hint: str = "") -> None:
        kind: Any = type(self)  # mypy takes the class of dataclasses for unhashable, as their instances are
        allowed, given = choices(kind, name), getattr(self, name)
        if given not in allowed:  # an enum of transformers is equal to its text
            words = listed(allowed)
            raise ValueError(f"`{name}` is `{getattr(given, 'value', given)}`; choose from {words}.{hint}")

    def __repr__(self) -> str:
        """As any dataclass, with no token, not even that of `training_args`: notebooks print it."""
        shown = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items() if name != "hub_token")
        return f"{type(self).__name__}({shown})"


@dataclass
class ModelArguments:
    """Which model to load, and how."""

    model_name_or_path: str | None = _field(None, "Folder of the model, or its name on the Hub.")
    gguf_file: str | None = _field(None, "GGUF file inside that folder to load (de-quantised).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _field(
        "auto", "Type to load the weights in; `auto` keeps the checkpoint's (float32 for GGUF)."
    )
    device: str = _field(
        "auto",
        "Device: cpu, cuda, cuda:1, xpu, or `auto` for the accelerator if there is one. Scores are computed in float64, which "
        "Apple's MPS does not have, so `auto` uses the CPU there.",
    )
    trust_remote_code: bool = _field(
        False, "Run the modelling code that comes with the model, or a metric that does not come with this package."
    )
