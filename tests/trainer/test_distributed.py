"""SpectralPruningCallback over several processes: data-parallel, FSDP2 and DeepSpeed, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import data_parallel
import deepspeed_zero
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from conftest import logits, random_batch, tiny_model
from processes import run_in_two_processes
from transformers import AutoModelForCausalLM
from vision import tiny_vision

from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.distributed import shards_weights
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.studies.differentiation import NDPArguments, NDPCallback


def widths(model) -> list[int]:
    return [group.size for group in unit_groups(model)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The model and the callback of one process that sees both halves of each batch."""
    return data_parallel.train_alone(tmp_path_factory.mktemp("alone"))


def assert_same_weights(weights: dict[str, torch.Tensor], model) -> None:
    """Gradients are summed in another order, which Adam makes visible where they are small."""
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


def assert_same_scores(found: dict[str, list[float]], tracking, kept: dict[str, torch.Tensor]) -> None:
    """The scores of the cut model; where training is spread the masked units are silent ones."""
    assert found.keys() == tracking.scores.keys()
    for key, score in tracking.scores.items():
        values = torch.tensor(found[key], dtype=score.dtype)
        torch.testing.assert_close(values[kept[key]], score, rtol=1e-2, atol=1e-6)
        assert float(values.sum()) == pytest.approx(float(score.sum()), rel=1e-2)


def test_two_processes_end_with_the_same_model_as_one(alone, forks, tmp_path):
    """Data-parallel on two processes: masked while training, removed at the end, on both alike."""
    results = run_in_two_processes(forks, "data_parallel.py", tmp_path)
    assert results[0]["digest"] == results[1]["digest"]
    assert results[0]["sizes"] == results[1]["sizes"]
    assert results[0]["masked_while_training"] and results[0]["parameters"] == results[0]["planned"]
    model, callback, tracking = alone
    assert callback.plan.kept == {key: tuple(kept) for key, kept in results[0]["kept"].items()}
    assert results[0]["scores"] == results[1]["scores"]
    assert_same_scores(results[0]["scores"], tracking, {key: callback.plan.kept_index(key) for key in callback.plan.kept})
    assert_same_weights(torch.load(tmp_path / "rank0.pt", weights_only=True), model)


@pytest.fixture(scope="module")
def sharded(forks, tmp_path_factory):
    """What each of two processes that shard the weights ended with, and the folder of what the trainers saved."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model().save_pretrained(folder / "dense")
    return run_in_two_processes(forks, "sharded.py", folder), folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "resumed", "loaded"])
def test_sharded_weights_are_masked_and_the_pruned_model_is_saved(kind, sharded, alone):
    results, folder = sharded
    first, second = (result[kind] for result in results)
    model, callback, tracking = alone
    # Sharded and of the old size at every step; each process has a part.
    assert first["whole"] == second["whole"] == [num_parameters(tiny_model())]
    assert [sum(parts) for parts in zip(first["here"], second["here"], strict=True)] == first["whole"]
    assert first["kept"] == second["kept"] and first["scores"] == second["scores"] and first["tracked"] == second["tracked"]
    assert_same_scores(first["tracked"], tracking, {key: callback.plan.kept_index(key) for key in callback.plan.kept})
    assert {key: tuple(kept) for key, kept in first["kept"].items()} == callback.plan.kept
    assert first["parameters_before"] == callback.plan.parameters_before
    saved = AutoModelForCausalLM.from_pretrained(folder / kind)
    assert num_parameters(saved) == first["parameters_after"] == num_parameters(model)
    assert_same_weights(saved.state_dict(), model)


def test_checkpoints_of_sharded_training_have_the_old_size_and_the_pruned_function(sharded):
    _, folder = sharded
    wide = AutoModelForCausalLM.from_pretrained(folder / "out" / "checkpoint-6")
    cut = AutoModelForCausalLM.from_pretrained(folder / "fsdp")
    assert widths(wide) == widths(tiny_model()) != widths(cut)
    torch.testing.assert_close(logits(wide, random_batch()), logits(cut, random_batch()), rtol=1e-4, atol=1e-4)


def test_error_of_the_first_process_stops_the_others(sharded):
    results, _ = sharded
    assert results[0]["refused"].startswith("ValueError: ")
    assert results[1]["refused"] == results[0]["refused"].replace("ValueError: ", "RuntimeError: The first process stopped: ")


@pytest.fixture(scope="module")
def zero(forks, tmp_path_factory):
    """What each of two processes that DeepSpeed joins ended with, and the folder of what the trainers saved."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("zero")
    return run_in_two_processes(forks, "deepspeed_zero.py", folder, DS_ACCELERATOR="cpu", ACCELERATE_USE_CPU="false"), folder


@pytest.mark.parametrize("stage", deepspeed_zero.STAGES)
def test_deepspeed_ends_with_the_same_model_as_one_process(stage, zero, alone):
    """Whole weights on every process: masked while training, removed at the end."""
    (first, second), folder = zero
    model, callback, _ = alone
    assert first[stage] == second[stage]
    assert {key: tuple(kept) for key, kept in first[stage]["kept"].items()} == callback.plan.kept
    cut = AutoModelForCausalLM.from_pretrained(folder / stage)
    assert_same_weights(cut.state_dict(), model)
    wide = AutoModelForCausalLM.from_pretrained(folder / f"out{stage}" / "checkpoint-6")
    assert widths(wide) == widths(tiny_model())
    torch.testing.assert_close(logits(wide, random_batch()), logits(cut, random_batch()), rtol=1e-4, atol=1e-4)


PROCESSES = {"distributed_type": DistributedType.MULTI_CPU}
FSDP = {"distributed_type": DistributedType.FSDP}
STAGE_3 = {"distributed_type": DistributedType.DEEPSPEED, "deepspeed_plugins": SimpleNamespace(zero_stage=3)}
REFUSED = {
    "FSDP1": (FSDP | {"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, {}, {}, '`"version": 2`'),
    "DeepSpeed stage 3": (STAGE_3, {}, {}, "Use stage 2"),
    "Megatron": ({"distributed_type": DistributedType.MEGATRON_LM}, {}, {}, "does not know how MEGATRON_LM"),
    "compiled": (PROCESSES, {}, {"torch_compile": True}, "Leave it off"),
    "repaired": (PROCESSES, {"compensation": "bias"}, {}, "`compensation` `bias` .* only masks"),
}


def spread(monkeypatch, state: dict) -> None:
    """Lets accelerate say that the weights are spread otherwise than in one process."""
    for name, value in state.items():
        for known in (PartialState, AcceleratorState):  # the second takes over what the first has
            monkeypatch.setitem(known._shared_state, name, value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_masked_is_told_before_any_step(case, tmp_path, monkeypatch):
    state, pruning, training, message = REFUSED[case]
    trainer, callback = data_parallel.pruning_trainer(tiny_model(), data_parallel.arguments(tmp_path, 8, **training))
    trainer.remove_callback(callback)
    spread(monkeypatch, state)
    callback.args = replace(callback.args, **pruning)
    with pytest.raises(ValueError, match=message) as raised:
        callback.attach(trainer)
    assert "\n" not in str(raised.value)


def test_finetune_share_of_ndp_is_refused_under_deepspeed(tmp_path, monkeypatch):
    trainer, _ = data_parallel.pruning_trainer(tiny_model(), data_parallel.arguments(tmp_path, 8))
    spread(monkeypatch, STAGE_3 | {"deepspeed_plugins": SimpleNamespace(zero_stage=2)})
    callback = NDPCallback(NDPArguments(target_reduction=0.1, finetune_share=0.5), [random_batch()])
    with pytest.raises(ValueError, match=r"`finetune_share` .* Leave it out"):
        callback.attach(trainer)


def test_sharded_weights_of_a_traced_family_are_refused(tmp_path, monkeypatch):
    data_parallel.pruning_trainer(tiny_model(), data_parallel.arguments(tmp_path, 8))  # sets accelerate's state
    spread(monkeypatch, FSDP | {"fsdp_plugin": SimpleNamespace(fsdp_version=2)})
    assert shards_weights(tiny_model())
    with pytest.raises(ValueError, match="resnet family cannot be traced in sharded weights"):
        shards_weights(tiny_vision("resnet-basic"))


def test_tensor_parallelism_is_refused(sharded):
    results, _ = sharded
    assert all("tensor parallelism splits over processes" in result["tensor_parallel"] for result in results)
