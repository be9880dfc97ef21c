"""What dataclasses of options share: plain values for loggers and reports, with tokens masked, and the check of a push."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Protocol

from .option_values import masked
from .types import Json


class HubOptions(Protocol):
    """Where a result is saved and pushed to."""

    output_dir: str | None
    push_to_hub: bool
    hub_model_id: str | None
    hub_private_repo: bool
    hub_token: str | None


class PrunerOptions(HubOptions, Protocol):
    """What a pruner reads of its options for callbacks, logs and saving."""

    overwrite_output_dir: bool
    self_check: bool
    disable_tqdm: bool
    report_to: list[str] | str

    @property
    def logging_steps(self) -> int:
        """Steps between logs; a step is a round."""

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations."""

    @property
    def save_steps(self) -> int:
        """Steps between checkpoints."""

    @property
    def metric_for_best_model(self) -> str | None:
        """Metric that callbacks watch."""

    @property
    def calibration_batch_size(self) -> int:
        """Rows of a batch."""


def check_hub_options(options: HubOptions) -> None:
    """Tells of a push that does not know what or where.

    Raises:
        ValueError: `push_to_hub` without `hub_model_id` or `output_dir`.
    """
    if options.push_to_hub and not (options.hub_model_id and options.output_dir):
        name = "output_dir" if options.hub_model_id else "hub_model_id"
        raise ValueError(f"`push_to_hub` is set, but `{name}` is not. Set it too.")


class PlainValues:
    """What loggers of transformers ask of a dataclass of options."""

    def to_dict(self) -> Json:
        """All options as plain values, tokens masked as in `TrainingArguments`."""
        return masked(asdict(self))  # type: ignore[call-overload]

    def to_json_string(self) -> str:
        """All options as JSON, as transformers' loggers ask for it."""
        return json.dumps(self.to_dict(), indent=2)

    def to_sanitized_dict(self) -> Json:
        """Options with values that loggers accept (numbers and strings)."""
        return {
            name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in self.to_dict().items()
        }
