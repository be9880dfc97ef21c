"""What `--help` shows: the flags that people need first; with `--help all` every flag, in groups."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

MODEL = "model_name_or_path"
# As many flags need no groups.
_FEW = 10
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
# Means nothing on the command line, which takes no callbacks; a recipe or a Trainer's options may have it.
_OF_CALLBACKS = ("load_best_model_at_end",)
# What a flag that several commands share means in one of them.
_HERE = {
    ("cria score", "output_dir"): "Folder to write scores.json to; without it they are printed.",
    (
        "cria score",
        "units",
    ): "Kinds of unit to score: `ffn` neurons and `heads` (key/value groups), or `channels`; by default all "
    "that the model's family has.",
    (
        "cria evaluate",
        "eval_file",
    ): "Text file to measure perplexity on, in blocks from its start (or text by text, see `packing`).",
    ("cria evaluate", "dataset_name"): "Data set whose held-out part is measured: its name on the Hub, or a folder.",
    (
        "cria evaluate",
        "calibration_file",
    ): "Text file whose held-out part is measured: .txt, .jsonl, .json, .csv, .tsv or .parquet.",
    (
        "cria ablate",
        "eval_file",
    ): "Text file to measure the losses on, in blocks from its start (or text by text, see `packing`); "
    "by default what is held out of the calibration text.",
    ("cria compare", "target_scope"): "What the fractions are of: the parameters of the `units` (`prunable`), those outside the "
    "embeddings, or all (tied weights once).",
}
# Title -> the names that belong there; a flag that is in none is shown under the last title.
GROUPS = {
    "Model": (
        "model_name_or_path",
        "gguf_file",
        "dtype",
        "device",
        "offload_folder",
        "trust_remote_code",
        "network_class",
        "network_args",
    ),
    "Data": (
        *("calibration", "calibration_file", "dataset_name", "dataset_config_name", "dataset_split", "streaming", "text_column"),
        *("text_pair_column", "label_column", "image_dir", "image_column", "eval_image_dir", "tensors_file", "eval_tensors_file"),
        *("num_calibration_samples", "max_seq_length", "calibration_batch_size", "packing", "eval_file", "eval_split"),
        *("num_eval_samples", "metric", "lm_eval", "lm_eval_limit", "lm_eval_include_path"),
    ),
    "Tasks and examples": (*("task", "task_file", "held_out_file", "draw", "num_adaptation_examples", "num_held_out_examples"),),
    "What to compare": (
        *("criteria", "criteria_args", "reductions", "compensations", "recoveries", "seeds", "num_layers", "units_per_layer"),
        *("top_share",),
    ),
    "How to search": (
        *(
            "shares",
            "layers",
            "weights",
            "attribute_on",
            "num_steps",
            "max_steps",
            "completeness_tolerance",
            "normalisation",
            "batch_tokens",
        ),
    ),
    "What to remove": (
        *("preset", "target_reduction", "target_scope", "units", "layout", "uniform_heads", "criterion", "criterion_args"),
        *("target_reductions", "target_bytes", "target_context", "target_tokens_per_second", "scores", "save_scores"),
        *("allocation", "rank_by", "num_allocation_samples", "num_rounds", "reallocate", "recalibrate_every", "round_to"),
        *("min_ffn_units", "min_kv_groups", "min_channels", "stock_class", "stop_metric", "stop_drop", "greater_is_better"),
        *("max_moment_gib", "seed"),
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
        *("json", "run_name", "disable_tqdm", "metric_for_best_model"),
    ),
    "Others": (),
}


class _Formatter(argparse.HelpFormatter):
    """One spelling of each flag, and its default where it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        metavar = self._format_args(action, self._get_default_metavar_for_optional(action)) if action.nargs != "?" else ""
        flag = f"{action.option_strings[0]} {metavar}".rstrip()
        return f"MODEL, {flag}" if action.dest == MODEL else flag

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.option_strings[0].startswith("--no_"):
            return f"Turn `{action.dest}` off."
        default = action.default
        words = _HERE.get((self._prog, action.dest), action.help or "")
        if default is None or default is False or default == []:
            return words
        # As it is typed, and a percent sign doubled, because argparse fills in what follows one.
        typed = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{words} (default: {typed.replace('%', '%%')})"


def help_text(prog: str, description: str, usage: str, actions: Iterable[argparse.Action], *, whole: bool) -> str:
    """The help of a command.

    Args:
        prog: the command, as it is typed.
        usage: its arguments in short.
        actions: of all flags.
        whole: all flags in groups, else those that are needed first. Where there are few, all are shown, without groups.
    """
    flags: dict[str, list[argparse.Action]] = {}  # a switch that is on by default has a second one, `--no_...`
    for action in actions:
        if action.option_strings and action.dest not in _OF_CALLBACKS:
            flags.setdefault(action.dest, []).append(action)

    def found(names: Iterable[str]) -> list[argparse.Action]:
        return [action for name in names for action in flags.get(name, [])]

    formatter = _Formatter(prog)
    formatter.add_text(f"usage: {prog} {usage}")
    formatter.add_text(description)
    if len(flags) <= _FEW:
        _section(formatter, "Options", found(flags))
    elif whole:
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
