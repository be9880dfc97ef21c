"""The words of a model card, each from measured figures of a saved folder; what was not measured is said."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import TypeGuard

from ...arguments import MEASURED_ALLOCATIONS
from ...criteria import CRITERIA
from ...models.cria import AUTO_CLASSES
from ...utils.types import Json
from ..formats import percent
from ..pruning_report import PruningReport
from ..saved_folder import SavedFolder
from . import tables as card_tables
from .markdown import code, string

_PIPELINES = {
    "LlavaForConditionalGeneration": "image-text-to-text",
    "Gemma3ForConditionalGeneration": "image-text-to-text",
    "Qwen2VLForConditionalGeneration": "image-text-to-text",
    "Qwen2_5_VLForConditionalGeneration": "image-text-to-text",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
    "ForImageClassification": "image-classification",
}
_REPAIRS = {
    "none": "No compensation: the remaining weights are those of the base model.",
    "recovered": "No compensation: until recovery, the remaining weights were those of the base model.",
    "bias": "Compensation: the mean of what was removed was added to the consumers' biases.",
    "least_squares": "Compensation: the consumers' remaining columns were refitted to the dense layers' outputs in closed "
    "form (least squares, ridge {ridge}).",
    "sequential": "Compensation: layer by layer, on the outputs of the layers cut before, the remaining weights were refitted in "
    "closed form: consumers to the dense model's residual stream, producers to what they gave in the dense model where that "
    "helped on rows kept back.",
}
_LOGITS = " At the end the logits got one factor, where that helped."
_SHARES = {
    "uniform": {
        "auto": "Every layer lost the same share of each kind of unit.",
        "proportional": "Every layer lost the same share.",
        "scores": "Every layer lost the same share of each kind of unit; the share of a kind follows its scores.",
        "loss_curves": "Every layer lost the same share of each kind of unit; the share of a kind follows the measured loss of "
        "cutting it in all layers{on}.",
        "fisher": "Every layer lost the same share of each kind of unit; the share of a kind follows the Fisher information of "
        "its units.",
        "search": "Every layer lost the same share of each kind of unit; the share of a kind is the one whose compensated "
        "model stayed closest to the dense one in trials{on}.",
    },
    "per_layer": {
        "scores": "The scores of all layers were ranked together.",
        "loss_curves": "The share of each layer follows the measured loss of cutting it alone{on}.",
        "fisher": "The share of each layer follows the Fisher information of its units, ranked over all layers together.",
        "search": "The share of each layer follows the Fisher information of its units, ranked over all layers together, with "
        "the weight for heads whose compensated model stayed closest to the dense one in trials{on}.",
    },
}
_SCOPES = {
    "all": "all parameters",
    "non_embedding": "the parameters outside the embeddings",
    "prunable": "the parameters of the prunable units",
    "units": "the units",
    "flops": "the FLOPs of one image",
}
_RECOVERIES = {
    "full": "fine-tuning of all weights",
    "lora": "LoRA adapters, merged into the weights",
    "distill": "distillation from the dense model",
    "blocks": "reconstruction of the dense residual stream, one layer after the other",
}


def architecture(saved: SavedFolder) -> str:
    """Class name of the model, from its config.

    Raises:
        ValueError: the config names none.
    """
    if network(saved):
        return network(saved).rpartition(":")[2]
    names = saved.config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise ValueError(f"`{saved.path / 'config.json'}` has no class in `architectures`. Save the model again.")
    return names[0]


def network(saved: SavedFolder) -> str:
    """`module:class` of a plain PyTorch network; empty for a model of transformers.

    Raises:
        ValueError: it is written otherwise.
    """
    name = saved.config.get("cria_network") or ""
    if name and re.fullmatch(r"[\w.]+:[\w.]+", str(name)) is None:
        raise ValueError(f"`cria_network` of `{saved.path / 'config.json'}` is not written `module:class`. Save the model again.")
    return name


def _by_ending(saved: SavedFolder, table: dict[str, str]) -> str | None:
    return next((value for ending, value in table.items() if architecture(saved).endswith(ending)), None)


def pipeline_tag(saved: SavedFolder) -> str | None:
    """The Hub's name of the model's task; None for a head that the Hub has no name for."""
    if architecture(saved).endswith("Model") and not architecture(saved).endswith("LMHeadModel"):
        return "feature-extraction"
    return _by_ending(saved, _PIPELINES)


def lm_eval_words(report: PruningReport) -> str | None:
    """How the tasks of lm_eval were measured; None where none was asked for."""
    if report.lm_eval is None:
        return None
    found = report.lm_eval
    shots = {task: entry.get("num_fewshot") for task, entry in found["tasks"].items()}
    solved = [f"{task} with {number} solved examples before each question" for task, number in shots.items() if number]
    how = f"; {', '.join(solved)}" if solved else ""
    items = f"the first {found['limit']:,} items of each" if found.get("limit") else "all items"
    return f"Tasks were measured by lm_eval {found['version']} on {items}, without a chat template{how}. ± is one standard error."


# ---- how


def method_lines(saved: SavedFolder) -> list[str]:
    """What the run did, one sentence or two a line; a pruner of another method than SpectralPruner's reports them itself."""
    report, arguments = saved.report, saved.report.arguments
    if report.method is not None:
        return [*report.method, *saved.plan.notes, f"Seed {saved.plan.seed}."]
    assert report.target_reduction is not None and report.target_scope is not None
    options = f" with {_options(saved.plan.criterion_args)}" if saved.plan.criterion_args else ""
    lines = [f"Criterion {code(saved.plan.criterion)}{options}. {criterion_words(saved.plan.criterion)}".strip()]
    target = f"{percent(report.target_reduction)} of {_SCOPES[report.target_scope]}"
    if arguments.get("target_bytes"):
        target = f"{arguments['target_bytes']:,.0f} bytes at the most"
    lines.append(f"Layout `{report.layout}`; target: {target}. {_share_words(saved)}".strip())
    lines += [*_round_lines(saved), *bound_lines(saved)]
    compensation = arguments["compensation"]
    repair = "recovered" if compensation == "none" and _is_recovered(saved) else compensation
    logits = _LOGITS if repair == "sequential" and pipeline_tag(saved) == "text-generation" else ""
    lines.append(_REPAIRS[repair].format(**arguments) + logits)
    lines.append(_recovery_line(saved))
    return [*lines, *saved.plan.notes, f"Seed {saved.plan.seed}."]


def _share_words(saved: SavedFolder) -> str:
    samples = saved.report.arguments.get("num_allocation_samples")
    on = f" ({samples} sequences)" if samples else ""
    return _SHARES[saved.report.layout].get(_allocation(saved), "").format(on=on)


def _allocation(saved: SavedFolder) -> str:
    """The allocation as it took effect; `auto` where the report leaves that open."""
    allocation = saved.report.arguments["allocation"]
    if saved.report.layout != "uniform":
        return allocation
    # A uniform layout weighs kinds of unit against each other, and nothing else.
    kinds = {key.rpartition(".")[2] for key in saved.report.sizes}
    if len(kinds) < 2 or saved.report.target_scope == "flops":
        return "proportional"
    if allocation != "auto":
        return allocation
    if saved.report.calibration is None:
        return "proportional"
    return "loss_curves" if pipeline_tag(saved) == "text-generation" else "auto"  # there next tokens give a loss


def _round_lines(saved: SavedFolder) -> list[str]:
    """How many rounds there were, and the parameters after those that were logged."""
    count = saved.state.get("global_step", 0)
    logged = {entry["step"]: f"{entry['parameters']:,}" for entry in saved.state.get("log_history", []) if "parameters" in entry}
    if count < 2:
        return []
    if not logged:
        return [f"{count} rounds."]
    names = ", ".join(str(step) for step in logged)
    after = "each" if len(logged) == count else f"round{'s' if len(logged) > 1 else ''} {names}"
    return [f"{count} rounds; parameters after {after}: {', '.join(logged.values())}."]


def bound_lines(saved: SavedFolder) -> list[str]:
    """What the bounds of neural differentiation say of the plan; nothing for another criterion."""
    bounds = saved.report.bounds
    if bounds is None:
        return []
    groups = bounds["groups"].values()
    mass, gap = max(group["largest_mass"] for group in groups), min(group["gap"] for group in groups)
    largest = {name: max(group[name] for group in groups) for name in ("incoherence", "correlation", "largest_correlation")}
    return [
        f"Bounds of the plan by the dense model's weights: the removed units move the parameters by "
        f"Δ = {bounds['parameter_distance']:.4g} (eq. 30), at most {bounds['parameter_distance_bound']:.4g} (eq. 53). By layers, "
        f"with the correlations taken as known: smallest gap {gap:.3g}, largest μ {mass:.3g}, largest incoherence bound (eq. 27) "
        f"{largest['incoherence']:.3g}; two units correlate by at most {largest['correlation']:.3g} by this package's bound, "
        f"and by {largest['largest_correlation']:.3g} at the most in fact."
    ]


def _options(options: Json) -> str:
    return ", ".join(code(f"{name}={value}") for name, value in sorted(options.items()))


def criterion_words(name: str) -> str:
    """What the criterion's own docstring says it measures; empty where the criterion is not installed here."""
    doc = inspect.getdoc(CRITERIA[name]) if name in CRITERIA else None
    return " ".join((doc or "").partition("\n\n")[0].split())


def sources(name: str) -> list[str]:
    """arXiv numbers that the criterion's docstring names ahead of its options, beside that of the package's own method."""
    doc = inspect.getdoc(CRITERIA[name]) if name in CRITERIA else None
    found = re.findall(r"arXiv:\d{4}\.\d{4,5}", (doc or "").partition("Options:")[0])
    return [source for source in dict.fromkeys(found) if source != "arXiv:2605.18860"]


def _recovery_line(saved: SavedFolder) -> str:
    if saved.report.recovery is None:
        return "No training after the cut."
    how, metrics = saved.report.arguments["recovery"], saved.report.recovery["metrics"]
    line = f"Recovery: {_RECOVERIES.get(how, how)}"
    training = saved.report.arguments.get("training_args") or {}
    judge = (training.get("metric_for_best_model") or "loss").removeprefix("eval_")  # by this it was kept or not
    if f"before_{judge}" in metrics and f"after_{judge}" in metrics:
        line += f"; held-out {judge} {metrics[f'before_{judge}']:.4g} before, {metrics[f'after_{judge}']:.4g} after"
    kept = (
        "The recovered weights were kept." if _is_recovered(saved) else "The recovered weights were no better and were not kept."
    )
    return f"{line}. {kept}"


def _is_recovered(saved: SavedFolder) -> bool:
    return saved.report.recovery is not None and saved.report.recovery["kept"] == "recovered"


# ---- data and figures


def scores_read_data(saved: SavedFolder) -> bool:
    """Whether the units were scored by calibration data; a criterion that is not installed here counts as one that was."""
    criterion = CRITERIA.get(saved.plan.criterion)
    return criterion is None or criterion.needs_moments or criterion.needs_statistics


def protocol_words(protocol: Json | None) -> str | None:
    """The protocol of calibration or evaluation data as a phrase: source, sequences, tokens, draw; None if there was none."""
    if protocol is None:
        return None
    source, split = protocol["source"], protocol.get("split")
    named = f" (split {code(split)})" if split and not source.endswith(f":{split}") else ""
    what = "images" if "input_shape" in protocol else "sequences"
    words = f"{code(source)}{named}, {protocol['num_sequences']:,} {what}"
    if protocol.get("max_seq_length"):
        words += f" of at most {protocol['max_seq_length']:,} tokens"
    if protocol.get("num_tokens"):
        words += f", {protocol['num_tokens']:,} tokens in all"
    if protocol.get("packing"):
        words += ", texts joined into one stream"
    if protocol.get("seed") is not None:
        words += f", drawn with seed {protocol['seed']}"
    return words


def calibration_words(saved: SavedFolder) -> str:
    """The calibration data, and whether the scores come from it."""
    protocol = protocol_words(saved.report.calibration)
    if protocol is None:
        return "none; the criterion reads weights only"
    return protocol if scores_read_data(saved) else f"{protocol}; not used for the scores"


def machine_words(saved: SavedFolder) -> str:
    """The machine of the run, as a phrase."""
    return machine_phrase(saved.report.machine)


def machine_phrase(machine: Mapping[str, object]) -> str:
    """What `utils.environment.machine` says, as a phrase."""
    system, cpus, threads, accelerator = (machine[name] for name in ("system", "cpus", "torch_threads", "accelerator"))
    used = f"{threads} thread{'' if threads == 1 else 's'}"
    return f"{system}, {cpus} processors ({used}), {'no accelerator' if accelerator == 'none' else accelerator}"


def cost_words(saved: SavedFolder) -> str | None:
    """Time and memory of the pruning run, as a sentence."""
    timings, peak = saved.report.timings, saved.report.peak_memory
    if not timings or not peak:
        return None
    seconds = sum(timings.values())
    host, accelerator = (peak[name] / 2**30 for name in ("host", "accelerator"))
    there = f" and {accelerator:.1f} GiB on the accelerator" if accelerator else ""
    return f"The pruning run took {seconds:,.0f} s and at most {host:.1f} GiB of memory{there}."


# ---- use and limits


def is_cria(saved: SavedFolder) -> bool:
    """Whether the model needs a class that transformers does not have."""
    return "auto_map" in saved.config


def loading_code(saved: SavedFolder, name: str, *, remote: bool) -> str:
    """The lines that load this very folder.

    Args:
        remote: for a Cria class, by the code beside the weights instead of the installed package.
    """
    if network(saved):
        module, _, cls = network(saved).partition(":")
        imports = f"from cria_channels import cria_class  # the file beside the weights\nfrom {module} import {cls}"
        return f"{imports}\n\nmodel = cria_class({cls}).from_pretrained({string(name)})"
    auto = _by_ending(saved, AUTO_CLASSES) or "AutoModel"
    processor = _processor(saved)
    option = ", trust_remote_code=True" if remote else ""
    lines = [f"from transformers import {', '.join([auto, *processor])}", ""]
    if is_cria(saved) and not remote:
        lines = ["import hf_spectral_prune  # registers the Cria classes", *lines]
    lines.append(f"model = {auto}.from_pretrained({string(name)}{option})")
    lines += [
        f"{'tokenizer' if 'Tokenizer' in cls else 'processor'} = {cls}.from_pretrained({string(name)}{option})"
        for cls in processor
    ]
    return "\n".join(lines)


def usage_code(saved: SavedFolder) -> str:
    """The lines that use the model once it is loaded; empty where its task has no line that would do for all models."""
    if network(saved) or not (saved.path / "tokenizer_config.json").is_file():
        return ""
    task = pipeline_tag(saved)
    if task == "text-generation":
        return (
            '\n\ninputs = tokenizer("Once upon a time", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"
        )
    if task == "text-classification":
        return (
            '\n\nlogits = model(**tokenizer("A text to classify.", return_tensors="pt")).logits\n'
            "print(model.config.id2label[int(logits.argmax())])"
        )
    return ""


def _processor(saved: SavedFolder) -> list[str]:
    if (
        pipeline_tag(saved) in ("image-text-to-text", "automatic-speech-recognition")
        and (saved.path / "preprocessor_config.json").is_file()
    ):
        return ["AutoProcessor"]
    if (saved.path / "tokenizer_config.json").is_file():
        return ["AutoTokenizer"]
    return ["AutoImageProcessor"] if (saved.path / "preprocessor_config.json").is_file() else []


def self_check_words(saved: SavedFolder) -> str:
    """What the reload in a fresh process showed."""
    checks = saved.report.self_check
    if not checks:
        return "The saved folder was not reloaded and compared (`self_check` was off)."
    worst = max(found["max_abs_diff"] for found in checks.values())
    return f"The saved folder was reloaded in a fresh process and its outputs compared: the largest difference was {worst:.3g}."


def limit_lines(saved: SavedFolder) -> list[str]:
    """What this card does not show."""
    lines = []
    if not card_tables.metrics(saved):
        lines.append("Quality was measured neither before nor after pruning.")
    else:
        lines.append("Quality was measured only on the data named above; other data and tasks were not measured.")
    if saved.report.calibration is not None:
        source = code(saved.report.calibration["source"])
        if scores_read_data(saved):
            lines.append(f"The units were scored on {source}; what this data does not cover may have lost more.")
        elif fitted := _fitted_words(saved):
            lines.append(f"{fitted} fitted to {source}; what this data does not cover may have lost more.")
    if not card_tables.speed_rows(saved):
        lines.append("Speed was not measured.")
    lines.append("Bias and safety were not measured again; the limits of the base model apply here too.")
    return lines


def _fitted_words(saved: SavedFolder) -> str:
    """What but the scores the calibration data decided."""
    repaired = saved.report.arguments["compensation"] != "none"
    if _allocation(saved) in MEASURED_ALLOCATIONS:
        return "The widths and the compensation were" if repaired else "The widths were"
    return "The compensation was" if repaired else ""


def finite(value: object) -> TypeGuard[float]:
    """Whether a figure can stand in metadata: a number that is neither infinite nor undefined."""
    return isinstance(value, (int, float)) and math.isfinite(value)
