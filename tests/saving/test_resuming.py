"""A run is resumed with what it began with, from a checkpoint that is whole, or it is told why not."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import refused, tiny_model
from safetensors.torch import save_file
from transformers import TrainerCallback

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.saving import same_run


def make_pruner(model, batches, callbacks=None, **fields) -> SpectralPruner:
    defaults = {"disable_tqdm": True, "target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    return SpectralPruner(model, SpectralPruningArguments(**defaults | fields), batches, callbacks=callbacks)


DAMAGES = {
    "no plan": lambda folder: (folder / "pruning_plan.json").unlink(),
    "no state": lambda folder: (folder / "pruner_state.json").unlink(),
    "no sizes": lambda folder: (folder / "final_sizes.json").unlink(),
    "no scores": lambda folder: (folder / "pruning_scores.json").unlink(),
    "no weights": lambda folder: (folder / "repaired.safetensors").unlink(),
    "cut weights": lambda folder: (folder / "repaired.safetensors").write_bytes(
        (folder / "repaired.safetensors").read_bytes()[:900]
    ),
    "weights of another model": lambda folder: save_file({"a": torch.zeros(2)}, folder / "repaired.safetensors"),
    "cut plan": lambda folder: (folder / "pruning_plan.json").write_text((folder / "pruning_plan.json").read_text()[:200]),
    "sizes of words": lambda folder: (folder / "final_sizes.json").write_text('{"layers.0.ffn": "many"}'),
    "sizes of others": lambda folder: (folder / "final_sizes.json").write_text('{"layers.9.ffn": 3}'),
    "a list": lambda folder: (folder / "pruner_state.json").write_text("[1]"),
    "step 7": lambda folder: with_state(folder, global_step=7),
    "step 0": lambda folder: with_state(folder, global_step=0),
    "step -1": lambda folder: with_state(folder, global_step=-1),
    "step in words": lambda folder: with_state(folder, global_step="one"),
    "no history": lambda folder: with_state(folder, log_history="none"),
    "a round more": lambda folder: with_rounds(folder, 2),
}


def with_state(folder, **fields) -> None:
    path = folder / "pruner_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def with_rounds(folder, count: int) -> None:
    """State and scores that agree with each other, of a round that the plan knows nothing of."""
    with_state(folder, global_step=count)
    path = folder / "pruning_scores.json"
    scores = json.loads(path.read_text())
    path.write_text(json.dumps(scores | {"rounds": scores["rounds"][:1] * count}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_not_used(damage, batches, tmp_path):
    options = {"num_rounds": 3, "save_strategy": "steps", "output_dir": str(tmp_path), "compensation": "least_squares"}
    options |= {"layout": "per_layer", "allocation": "scores", "units": ["ffn"]}

    class Killed(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pruner(tiny_model(), batches, **options, callbacks=[Killed()]).prune()
    DAMAGES[damage](tmp_path / "checkpoint-1")
    model = tiny_model()
    refused(lambda: make_pruner(model, batches, **options).prune(resume_from_checkpoint=True), "checkpoint-1", "begin anew")


def test_resume_with_other_data_type_or_code_is_refused(batches, tmp_path, monkeypatch):
    options = {"num_rounds": 2, "save_strategy": "steps", "output_dir": str(tmp_path), "units": ["ffn"]}
    make_pruner(tiny_model(), batches, **options).prune()

    def resumed(model, data):
        return lambda: make_pruner(model, data, **options).prune(resume_from_checkpoint=tmp_path / "checkpoint-1")

    other = [*batches[:3], batches[3] | {"input_ids": batches[3]["input_ids"].flip(1)}]
    shorter = [{name: value[:, :16] for name, value in batch.items()} for batch in batches]
    for data in (other, shorter, batches[:3]):
        refused(resumed(tiny_model(), data), "`calibration_dataset` is ", "began with")
    refused(resumed(tiny_model().to(torch.bfloat16), batches), "`dtype` is 'bfloat16'", "began with 'float32'")
    resumed(tiny_model(), batches)()
    monkeypatch.setattr(same_run, "_code_digest", lambda criterion: "of another version")
    refused(resumed(tiny_model(), batches), "`code` is ", "of another version")
