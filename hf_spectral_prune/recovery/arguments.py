"""RecoveryArguments: how to recover, and the `TrainingArguments` beside it, as the options of a pruning run give them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from transformers import TrainingArguments

from ..arguments import SpectralPruningArguments, should_rise
from ..utils.environment import accelerator
from ..utils.option_types import fitted
from ..utils.types import Json, Options
from ..utils.words import did_you_mean, listed

# Where the Trainer takes more than the type hints of `TrainingArguments` say.
_WIDER_HINTS: dict[str, object] = {"resume_from_checkpoint": str | bool | None, "fsdp": Any, "accelerator_config": Any}


@dataclass
class RecoveryArguments:
    """How to recover; how to train is said by the `TrainingArguments` beside it.

    Attributes:
        method: "full" trains all weights; "lora" trains adapters and merges them, so that the result is one dense model of
            the same class; "distill" trains all weights toward the labels and a dense teacher; "blocks" trains one layer after
            the other toward the dense teacher's residual stream, in the memory of one layer and without labels.
        lora_target_modules: linear layers that get an adapter, by the end of their names; None takes every producer and
            consumer of the family's table (attention and FFN projections).
        keep_adapters: also save the adapters, to `adapters/` in the Trainer's `output_dir`.
        distill_temperature: T of the logits' term `T^2 KL(teacher || student)`.
        distill_alpha: weight of that term; the labels' loss has the rest.
        distill_hidden_weight: weight of `1 - cos` between the two models' hidden states, mean over layers and positions (1 if
            None); for networks pruned by channels, of the relative square error of the blocks' outputs (1,000 if None: labels
            and logits that a network knows by heart teach it little beside them).

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    method: Literal["full", "lora", "distill", "blocks"] = "full"
    lora_r: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_target_modules: list[str] | None = None
    keep_adapters: bool = False
    distill_temperature: float = 2.0
    distill_alpha: float = 0.5
    distill_hidden_weight: float | None = None

    def __post_init__(self) -> None:
        if self.method not in (methods := ("full", "lora", "distill", "blocks")):
            known = listed(methods)
            raise ValueError(f"`method` of the recovery is `{self.method}`; choose from {known}.")
        if self.lora_r < 1:
            raise ValueError(f"`lora_r` is {self.lora_r}; it must be at least 1.")
        for name in ("lora_alpha", "distill_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"`lora_dropout` is {self.lora_dropout}; it must be at least 0 and below 1.")
        if not 0 <= self.distill_alpha <= 1:
            raise ValueError(f"`distill_alpha` is {self.distill_alpha}; it must be between 0 and 1.")
        if self.distill_hidden_weight is not None and not self.distill_hidden_weight >= 0:
            raise ValueError(f"`distill_hidden_weight` is {self.distill_hidden_weight}; it must not be negative.")


def recovery_arguments(args: SpectralPruningArguments) -> tuple[RecoveryArguments, Options]:
    """The recovery's options, and the keywords of its `TrainingArguments`, as the arguments of a pruning run give them.

    Raises:
        ValueError: an unknown name (with the nearest), or a value of another type or that cannot work.
    """
    options = _fitted_options("recovery_args", args.recovery_args, RecoveryArguments)
    training = _fitted_options("training_args", args.training_args, TrainingArguments)
    method: Any = args.recovery if args.recovery != "none" else "full"
    recovery = RecoveryArguments(method=method, **options)
    watched = training.get("metric_for_best_model")
    if watched is not None:  # of the pruning run's own metric `greater_is_better` may say otherwise
        training.setdefault("greater_is_better", should_rise(watched))
    defaults = {
        "output_dir": f"{args.output_dir or 'cria'}-recovery",
        "save_strategy": "no",
        "metric_for_best_model": args.metric_for_best_model,
        "greater_is_better": args.greater_is_better,
        # A share of all steps: twenty points make a curve, however long the training is.
        "logging_steps": 0.05,
        "report_to": args.report_to,
        "run_name": args.run_name,
        "seed": args.seed,
        "disable_tqdm": args.disable_tqdm,
        "use_cpu": accelerator() is None,  # without this, TrainingArguments refuses bf16 there
    }
    return recovery, defaults | training


def _fitted_options(field_name: str, options: Json | str | None, kind: type[RecoveryArguments | TrainingArguments]) -> Options:
    assert isinstance(options, dict)
    known = [entry.name for entry in dataclasses.fields(kind) if entry.name != "method"]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"`{field_name}` has `{name}`, which `{kind.__name__}` does not take.{hint}")
    hints = get_type_hints(kind) | _WIDER_HINTS
    try:
        return {name: fitted(name, value, hints[name]) for name, value in options.items()}
    except ValueError as error:
        raise ValueError(f"`{field_name}`: {error}") from None
