"""What `--help` shows: the flags that people need first; with `--help all` every flag, in groups."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

# Needed first, in this order; a command shows those that it has.
FIRST = (
    "model_name_or_path",
    "output_dir",
    "preset",
    "target_reduction",
    "target_scope",
    "units",
    "layout",
    "criteria",
    "reductions",
    "task",
    "task_file",
    "dataset_name",
    "calibration_file",
    "calibration",
    "eval_file",
    "label_column",
    "recovery",
    "push_to_hub",
)
# Title -> the names that belong there; a flag that is in none is shown under the last title.
GROUPS = {
    "Model": ("model_name_or_path", "gguf_file", "dtype", "device", "trust_remote_code", "network_class", "network_args"),
    "Data": (
        *("calibration", "calibration_file", "dataset_name", "dataset_config_name", "dataset_split", "streaming", "text_column"),
        *("text_pair_column", "label_column", "image_dir", "image_column", "eval_image_dir", "tensors_file", "eval_tensors_file"),
        *("num_calibration_samples", "max_seq_length", "calibration_batch_size", "packing", "eval_file", "eval_split"),
        *("num_eval_samples", "metric"),
    ),
    "What to remove": (
        *("target_reductions", "target_bytes", "target_context", "scores", "save_scores"),
        *("preset", "target_reduction", "target_scope", "units", "layout", "uniform_heads", "criterion", "criterion_args"),
        *("allocation", "num_allocation_samples", "num_rounds", "reallocate", "recalibrate_every", "round_to"),
        *(
            "min_ffn_units",
            "min_kv_groups",
            "min_channels",
            "stock_class",
            "stop_metric",
            "stop_drop",
            "greater_is_better",
            "max_moment_gib",
        ),
        *("seed",),
    ),
    "Compensation and recovery": (
        *("compensation", "ridge", "recovery", "recovery_args", "training_args", "recovery_file", "num_recovery_samples"),
    ),
    "Output and Hub": (
        *("output_dir", "overwrite_output_dir", "self_check", "save_strategy", "save_steps", "resume_from_checkpoint"),
        *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token"),
    ),
    "Logging": (
        *("logging_strategy", "logging_steps", "logging_first_step", "eval_strategy", "eval_steps", "eval_delay", "report_to"),
        *("json", "run_name", "disable_tqdm", "metric_for_best_model", "load_best_model_at_end"),
    ),
    "Others": (),
}


def help_text(prog: str, description: str, usage: str, actions: Iterable[argparse.Action], *, whole: bool) -> str:
    """The help of a command.

    Args:
        prog: the command, as it is typed.
        usage: its arguments in short.
        actions: of all flags.
        whole: all flags in groups, else those that are needed first (all, where they are few).
    """
    flags: dict[str, list[argparse.Action]] = {}  # a switch that is on by default has a second one, `--no_...`
    for action in actions:
        if action.option_strings:
            flags.setdefault(action.dest, []).append(action)

    def found(names: Iterable[str]) -> list[argparse.Action]:
        return [action for name in names for action in flags.get(name, [])]

    formatter = argparse.ArgumentDefaultsHelpFormatter(prog)
    formatter.add_text(f"usage: {prog} {usage}")
    formatter.add_text(description)
    if whole or len(flags) <= len(FIRST):
        placed = {name for names in GROUPS.values() for name in names}
        for title, names in GROUPS.items():
            _section(formatter, title, found(names if title != "Others" else [name for name in flags if name not in placed]))
    else:
        _section(formatter, "Needed first", found(FIRST))
        formatter.add_text(f"`{prog} --help all` shows all {len(flags)} flags.")
    return formatter.format_help()


def _section(formatter: argparse.HelpFormatter, title: str, actions: Sequence[argparse.Action]) -> None:
    if actions:
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
