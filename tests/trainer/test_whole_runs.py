"""Sixteen ways to prune inside a Trainer, each from the first step to a saved folder that computes what the model did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from conftest import encoder_batch, tiny_encoder, tiny_model
from datasets import Dataset
from products import only
from test_pruning import Masking
from torch.utils.data import default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments
from vision import image_batch, tiny_vision

from hf_spectral_prune import PruningSchedule, SpectralPruningArguments, SpectralPruningCallback
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.cria import auto_class_of
from hf_spectral_prune.models.families import unit_groups

PRUNING = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "layout": "per_layer"}
PRUNING |= {"disable_tqdm": True, "criterion": "energy", "compensation": "none"}
TRAINING = {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none"}
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
CHANNELS = {"units": ["channels"], "round_to": 2, "min_channels": 2, "criterion": "magnitude"}


@dataclass(frozen=True)
class Way:
    """One way to use the callback.

    Attributes:
        killed_at: the run is killed after the checkpoint of this step, and resumed.
        trainings: how many times `train()` is called.
        streamed: the rows to train on are an IterableDataset.
        made: the Trainer makes the model by `model_init`.
    """

    model: Callable[[], Any] = tiny_model
    pruning: dict[str, Any] = field(default_factory=dict)
    schedule: PruningSchedule = PruningSchedule("linear", start_step=0, end_step=4)
    training: dict[str, Any] = field(default_factory=dict)
    callback: type[SpectralPruningCallback] = SpectralPruningCallback
    killed_at: int | None = None
    trainings: int = 1
    streamed: bool = False
    made: bool = False


ROUNDS = {"num_rounds": 2}
WAYS = {
    "before the first step, to a stock class": Way(pruning={"layout": "uniform"}, schedule=PruningSchedule("one_shot")),
    "cubic, gradients accumulated": Way(
        partial(tiny_model, "qwen3"), {"num_rounds": 3}, PruningSchedule("cubic"), {"gradient_accumulation_steps": 2}
    ),
    "gradient checkpointing": Way(partial(tiny_model, "gemma2"), ROUNDS, training={"gradient_checkpointing": True}),
    "mixed precision": Way(partial(tiny_model, "granite"), ROUNDS, training={"bf16": True}),
    "after training": Way(partial(tiny_model, "smollm3"), {"compensation": "least_squares"}, PruningSchedule("end")),
    "biases that make up for what goes": Way(partial(tiny_model, "mistral-window"), {"compensation": "bias"} | ROUNDS),
    "repaired layer by layer": Way(partial(tiny_model, "llama-tied"), {"compensation": "sequential"}),
    "feed-forward layers alone, Adafactor": Way(partial(tiny_model, "phi3"), ROUNDS, training={"optim": "adafactor"}),
    "evaluated and the best one loaded": Way(tiny_encoder, ROUNDS, training=EVERY_STEP | {"load_best_model_at_end": True}),
    "killed and resumed": Way(
        partial(tiny_encoder, "distilbert"), {"criterion": "taylor"} | ROUNDS, training=EVERY_STEP, killed_at=3
    ),
    "masked": Way(partial(tiny_encoder, "roberta", task="ForTokenClassification"), ROUNDS, callback=Masking),
    "masked, killed and resumed": Way(pruning=ROUNDS, training=EVERY_STEP, callback=Masking, killed_at=3),
    "a stream to train on": Way(partial(tiny_encoder, "modernbert", task="ForMaskedLM"), ROUNDS, streamed=True),
    "trained twice": Way(partial(tiny_encoder, "electra"), ROUNDS, trainings=2),
    "a model that the Trainer makes": Way(partial(tiny_model, "qwen2"), ROUNDS, made=True),
    "channels": Way(partial(tiny_vision, "resnet-basic"), CHANNELS | ROUNDS, training={"learning_rate": 1e-4}),
}
assert len(WAYS) == 16
# Ways of which each half has a test of its own among the fast ones.
LONG_WAYS = {
    "biases that make up for what goes",
    "feed-forward layers alone, Adafactor",
    "trained twice",
    "a model that the Trainer makes",
}


def rows_for(model: Any, count: int = 24) -> list[dict[str, torch.Tensor]]:
    """Rows with the targets of the model's task."""
    if model.main_input_name == "pixel_values":
        batch = image_batch(count)
    else:
        batch = encoder_batch(model, count)
        task, ids = type(model).__name__, batch["input_ids"]
        batch["labels"] = ids if task.endswith(("ForCausalLM", "ForMaskedLM")) else ids % 2
        if task.endswith("ForSequenceClassification"):
            batch["labels"] = batch["labels"][:, 0]
    return [{name: value[row] for name, value in batch.items()} for row in range(count)]


class Killed(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_of(way: Way, folder: str, others: list[TrainerCallback]) -> tuple[Trainer, SpectralPruningCallback]:
    model = way.model()
    rows = rows_for(model)
    calibration = [default_collate(rows[at : at + 8]) for at in (0, 8)]
    args = SpectralPruningArguments(
        **{"disable_tqdm": True, "criterion": "energy", "compensation": "none"} | PRUNING | way.pruning
    )
    callback = way.callback(args, calibration, schedule=way.schedule)
    trainer = Trainer(
        model=None if way.made else model,
        model_init=(lambda: way.model()) if way.made else None,
        args=TrainingArguments(folder, use_cpu=True, disable_tqdm=True, **TRAINING | way.training),
        train_dataset=Dataset.from_list(rows).with_format("torch").to_iterable_dataset() if way.streamed else rows,
        eval_dataset=rows[:8],
        callbacks=[callback, *others],
    )
    return trainer, callback


@pytest.mark.parametrize("name", only(WAYS.keys() - LONG_WAYS, WAYS))
def test_every_way_ends_in_a_folder_that_computes_the_same(name, tmp_path):
    way = WAYS[name]
    if way.killed_at is not None:
        trainer, _ = trainer_of(way, str(tmp_path / "run"), [Killed(way.killed_at)])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    trainer, callback = trainer_of(way, str(tmp_path / "run"), [])
    for _ in range(way.trainings):
        trainer.train(resume_from_checkpoint=True if way.killed_at is not None else None)
    # Mixed precision stays around the model of a Trainer.
    model, plan = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False), callback.plan
    dense = way.model()
    assert trainer.state.global_step == 6
    assert {group.key: group.size for group in unit_groups(model)} == {key: len(kept) for key, kept in plan.kept.items()}
    assert plan.sizes == {group.key: group.size for group in unit_groups(dense)}
    assert num_parameters(model) == plan.parameters_after < plan.parameters_before
    trainer.save_model(str(tmp_path / "saved"))
    auto = getattr(transformers, auto_class_of(type(model)))
    reloaded, told = auto.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    probe = default_collate(rows_for(dense, 4))
    with torch.inference_mode():
        expected, found = (each.eval()(**probe) for each in (model, reloaded))
    assert torch.isfinite(expected.logits).all()
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)
