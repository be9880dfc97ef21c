"""Figures of a model: perplexity, latency, parameters and size on disk."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel
from transformers.trainer_pt_utils import nested_numpify
from transformers.utils.generic import find_labels

from ..data.texts import Batch, CalibrationData
from ..models.distributed import gathered, share
from ..models.losses import loss_and_outputs, moved_to, num_targets, predicts_next_token, single_sequences, targets_of
from ..models.modes import evaluating
from ..models.packing import without_padding
from ..utils.progress import stage
from ..utils.types import Metrics, Preprocess


def held_out_figures(
    model: PreTrainedModel,
    data: CalibrationData | Iterable[Batch],
    compute_metrics: Metrics | None = None,
    progress: bool = True,
    title: str = "Evaluating",
    *,
    spread: bool = False,
    preprocess_logits_for_metrics: Preprocess | None = None,
) -> dict[str, float]:
    """What a model is judged by wherever it is judged: before and after, by the stop rule, the recovery and the studies.

    `perplexity` of a causal language model; with `compute_metrics`, or for another task, `task_metrics`, which for a classifier
    of texts or images has its accuracy where nothing else is asked for.

    Args:
        spread: every process of a distributed run has called this with the same data, and measures its share of the batches. The
            figures are those of one process.

    Raises:
        ValueError: see `perplexity` and `task_metrics`.
    """
    if compute_metrics is None and predicts_next_token(model):
        return perplexity(model, data, progress, title, spread=spread)
    return task_metrics(
        model,
        data,
        compute_metrics or _default_metrics(model),
        progress,
        title,
        spread=spread,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )


def perplexity(
    model: PreTrainedModel,
    data: CalibrationData | Iterable[Batch],
    progress: bool = True,
    title: str = "Evaluating",
    *,
    spread: bool = False,
) -> dict[str, float]:
    """Perplexity of a causal language model over batches of `input_ids` and, where padded, `attention_mask` (B, T).

    Every row is run by itself, without its padding: so padding on either side changes nothing for any kind of position
    encoding, and the logits of one row are all that is ever in memory. What counts as a token is told by
    `models.losses.next_token_targets`: labels of -100 do not. For `spread` see `held_out_figures`.

    Returns:
        `loss`: mean negative log-likelihood of a token given those before it, in nats, summed in float64;
        `perplexity`: its exponential; `num_tokens`: the number of predicted tokens.

    Raises:
        ValueError: the model is not a causal language model, or there is no token to predict.
    """
    _check_causal(model)
    total, count, _ = _measured(model, data, None, title, progress, spread)
    if count == 0:
        raise ValueError(
            "There is no token to predict: no row of the evaluation data has two tokens with a label. Give longer text."
        )
    loss = total / count
    # exp() raises from about 709 nats on, and a broken model should give a figure too.
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "num_tokens": count}


def _check_causal(model: PreTrainedModel) -> None:
    if not predicts_next_token(model):
        raise ValueError(
            f"`{type(model).__name__}` is not a causal language model, and perplexity is defined for those only. "
            "Evaluate it with a metric of its task."
        )


def task_metrics(
    model: PreTrainedModel,
    data: CalibrationData | Iterable[Batch],
    compute_metrics: Metrics | None = None,
    progress: bool = True,
    title: str = "Evaluating",
    *,
    spread: bool = False,
    preprocess_logits_for_metrics: Preprocess | None = None,
) -> dict[str, float]:
    """Loss of a model with a task head over batches with targets, and what `compute_metrics` makes of its predictions.

    Args:
        compute_metrics: as for Trainer: gets an `EvalPrediction` with the outputs and targets of all batches (-100 where
            padded), as arrays. What it gives beside single numbers is left out.
        spread: see `held_out_figures`.
        preprocess_logits_for_metrics: as for Trainer: makes of the outputs and targets of a batch what is kept of it.

    Returns:
        `loss`: mean over targets; and the metrics by their names.

    Raises:
        ValueError: a batch lacks the targets of the model's task.
    """
    preprocess = preprocess_logits_for_metrics
    total, count, predicted = _measured(model, data, compute_metrics, title, progress, spread, preprocess)
    if count == 0:
        raise ValueError("There is no target to evaluate on. Give batches with labels that are not -100.")
    figures = {"loss": total / count}
    if compute_metrics is not None:
        # Lists and matrices (one value a class, a confusion matrix) are no figures to compare or to stop by.
        found = compute_metrics(predicted)
        figures |= {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
    return figures


def _measured(
    model: PreTrainedModel,
    data: Iterable[Batch],
    compute_metrics: Metrics | None,
    title: str,
    progress: bool,
    spread: bool,
    preprocess: Preprocess | None = None,
) -> tuple[float, int, EvalPrediction]:
    """Summed loss, number of targets and, only where `compute_metrics` will ask for them, predictions and targets."""
    numbered: Iterable[tuple[int, Batch]] = share(tuple(enumerate(data))) if spread else enumerate(data)
    length = len(data) if isinstance(data, Sized) else None
    found: dict[int, _Found] = {}
    names = find_labels(type(model))
    with evaluating(model):
        for index, batch in stage(title, numbered, total=length, unit="batches", show=progress):
            of_batch = found[index] = _Found()
            for part in _parts(model, moved_to(model, batch), names):
                with torch.inference_mode():
                    loss, outputs = loss_and_outputs(model, part)
                of_batch.losses.append(float(loss))
                of_batch.targets += num_targets(model, part)
                if compute_metrics is not None:
                    logits: Any = tuple(value for name, value in outputs.items() if name.endswith("logits"))
                    given: Any = tuple(part[name] for name in names if name in part)
                    logits, given = (values[0] if len(values) == 1 else values for values in (logits, given))
                    of_batch.predictions.append(nested_numpify(logits if preprocess is None else preprocess(logits, given)))
                    of_batch.labels.append(nested_numpify(given))
    if spread:
        found = gathered(found)
    ordered = [found[index] for index in sorted(found)]
    # `fsum` is exact, so that the loss does not depend on who has measured what.
    total = math.fsum(loss for batch in ordered for loss in batch.losses)
    predictions = [values for batch in ordered for values in batch.predictions]
    labels = [values for batch in ordered for values in batch.labels]
    return total, sum(batch.targets for batch in ordered), EvalPrediction(_joined(predictions), _joined(labels))


@dataclass
class _Found:
    """What was measured on a batch, part by part."""

    losses: list[float] = field(default_factory=list)
    targets: int = 0
    predictions: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)


def _parts(model: PreTrainedModel, batch: Batch, names: list[str]) -> Iterable[Batch]:
    """What of a batch is run at once, so that the figures do not depend on how rows were batched.

    Rows of text to go on with are run alone, without padding. So are those of a loss that is a sum of means.
    """
    if predicts_next_token(model):
        batch = batch | {"labels": targets_of(model, batch)}
        return (row for row in map(without_padding, single_sequences([batch])) if row["input_ids"].shape[1] > 1)
    return single_sequences([batch]) if sum(name in batch for name in names) > 1 else [batch]


def _joined(parts: list[Any]) -> Any:
    """Arrays (N, ...) of all parts in one, or a tuple of such; filled up by -100 where the parts are not equally long."""
    if not parts:
        return None
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(each)) for each in zip(*parts, strict=True))
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int)
    padded = [
        np.pad(
            part,
            [(0, 0), *((0, int(most) - size) for most, size in zip(shape, part.shape[1:], strict=True))],
            constant_values=-100,
        )
        for part in parts
    ]
    return np.concatenate(padded)


def _default_metrics(model: PreTrainedModel) -> Metrics | None:
    """`compute_metrics` of the model's task where one goes without saying: the accuracy where one class of several is right."""
    classifies = type(model).__name__.endswith(("ForSequenceClassification", "ForImageClassification"))
    one_of_several = (model.config.num_labels or 0) > 1 and model.config.problem_type in (None, "single_label_classification")
    return _accuracy if classifies and one_of_several else None


def _accuracy(found: EvalPrediction) -> dict[str, float]:
    predictions, labels = np.asarray(found.predictions), np.asarray(found.label_ids)
    if predictions.shape[:-1] != labels.shape:  # several labels per row
        return {}
    return {"accuracy": float((predictions.argmax(-1) == labels)[labels != -100].mean())}


def latency(
    model: PreTrainedModel,
    *,
    prefill_tokens: int = 512,
    decode_tokens: int = 32,
    batch_size: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Speed of a causal language model in tokens per second, as `paired_latency` measures it, for one model alone."""
    models = {"model": model}
    return paired_latency(
        models,
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        batch_size=batch_size,
        repeats=repeats,
        warmup=warmup,
        seed=seed,
    )["model"]


def paired_latency(
    models: Mapping[str, PreTrainedModel],
    *,
    prefill_tokens: int = 512,
    decode_tokens: int = 32,
    batch_size: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Speeds of several models, timed in turn (A B A B ...): a machine's speed drifts, and so it drifts for all alike.

    A measurement is one pass over `prefill_tokens` random tokens a row, then `decode_tokens` steps of one token a row
    with the key/value cache. All models read the same tokens, from the smallest of their vocabularies.

    Returns:
        for each model `prefill_tokens_per_second` and `decode_tokens_per_second`, tokens of all rows together, medians
        over `repeats`, and the same names with `_min` and `_max`.

    Raises:
        ValueError: a model is not a causal language model or has too few positions, or a setting is below its least.
    """
    least = {"prefill_tokens": 1, "decode_tokens": 1, "batch_size": 1, "repeats": 1, "warmup": 0}
    given = (prefill_tokens, decode_tokens, batch_size, repeats, warmup)
    for (setting, minimum), value in zip(least.items(), given, strict=True):
        if value < minimum:
            raise ValueError(f"`{setting}` is {value}, but must be at least {minimum}.")
    length = prefill_tokens + decode_tokens
    for model in models.values():
        _check_causal(model)
        _check_length(model, length)
    vocab_size = min(model.config.get_text_config().vocab_size for model in models.values())
    ids = torch.randint(vocab_size, (batch_size, length), generator=torch.Generator().manual_seed(seed))  # (B, T)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repeat in stage("Timing", range(warmup + repeats), unit="passes"):
        for name, model in models.items():
            prefill, decode = _time_once(model, ids.to(model.device), prefill_tokens)
            if repeat >= warmup:
                speeds[name].append((batch_size * prefill_tokens / prefill, batch_size * decode_tokens / decode))
    return {name: _summary(pairs) for name, pairs in speeds.items()}


def _check_length(model: PreTrainedModel, length: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(
            f"`prefill_tokens` + `decode_tokens` is {length}, but `{type(model).__name__}` takes at most {positions} "
            "positions. Lower one of them."
        )


def _summary(speeds: list[tuple[float, float]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for part, values in zip(("prefill", "decode"), zip(*speeds, strict=True), strict=True):
        key = f"{part}_tokens_per_second"
        figures |= {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
    return figures


@torch.inference_mode()
def _time_once(model: PreTrainedModel, ids: Tensor, prefill_tokens: int) -> tuple[float, float]:
    """Seconds for the prefill and for all decoding steps of one run over ids (B, T)."""
    # As in `generate`: only the last position's logits are needed after the prefill.
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    with evaluating(model):
        start = _now(ids.device)
        cache = model(input_ids=ids[:, :prefill_tokens], use_cache=True, **last).past_key_values
        middle = _now(ids.device)
        for position in range(prefill_tokens, ids.shape[1]):
            step = ids[:, position : position + 1]
            cache = model(input_ids=step, past_key_values=cache, use_cache=True).past_key_values
        return middle - start, _now(ids.device) - middle


def _now(device: torch.device) -> float:
    # An accelerator runs behind the program: without waiting for it, only the launching would be timed.
    current = torch.accelerator.current_accelerator()
    if current is not None and current.type == device.type:
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, tied ones counted once, embeddings included."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_non_embedding_parameters(model: PreTrainedModel) -> int:
    """Parameters without the token embedding and the output projection onto the vocabulary, tied ones counted once.

    Raises:
        NotImplementedError: the model has no token embedding (a vision model).
    """
    output = model.get_output_embeddings()
    modules = [model.get_input_embeddings()] + ([output] if output is not None else [])
    embeddings = {id(parameter) for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)


def size_on_disk(folder: str | Path) -> int:
    """Bytes of the safetensors files directly in a model folder.

    Raises:
        FileNotFoundError: the folder has none.
    """
    sizes = [file.stat().st_size for file in Path(folder).glob("*.safetensors")]
    if not sizes:
        raise FileNotFoundError(f"{folder} has no .safetensors file. Give a folder that `save_pretrained` wrote.")
    return sum(sizes)
