"""The place of a result: nothing that lies there is lost, nothing half-written stays, and two runs never share one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import logits, random_batch, refused, tiny_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.cli import main
from hf_spectral_prune.saving import checkpoint, folder, selfcheck
from hf_spectral_prune.saving.place import reserved

SMALL = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "criterion": "magnitude"}


class Then(TrainerCallback):
    """Does something when a round has ended, once."""

    def __init__(self, act) -> None:
        self.act = act

    def on_step_end(self, args, state, control, **kwargs):
        act, self.act = self.act, lambda: None
        act()


def make_pruner(output_dir: Path, *, during=lambda: None, model: PreTrainedModel | None = None, **fields) -> SpectralPruner:
    args = SpectralPruningArguments(
        **{"output_dir": str(output_dir), "disable_tqdm": True, "self_check": False, "num_rounds": 2} | SMALL | fields
    )
    rows = [{"input_ids": ids} for ids in random_batch(8)["input_ids"]] if args.recovery != "none" else None
    return SpectralPruner(
        tiny_model() if model is None else model, args, [random_batch(4, 16)], callbacks=[Then(during)], train_dataset=rows
    )


def write(file: Path, text: str = "weeks of work") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def names(path: Path) -> set[str]:
    return set(os.listdir(path))


@pytest.fixture
def another_run(tmp_path):
    """A process that has reserved `out`; its id."""
    started, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with reserved(tmp_path / "out"):
            os.write(write_end, b"x")
            signal.pause()
    os.read(started, 1)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---- one run to a place


def test_a_second_run_is_refused_before_any_work(another_run, tmp_path):
    words = ["is being written by another run", f"process {another_run} on", ".out.lock"]
    refused(lambda: make_pruner(tmp_path / "out").prune(), *words)
    assert names(tmp_path) == {".out.lock"}


def test_place_of_a_process_that_was_killed_is_taken_over(another_run, tmp_path):
    os.kill(another_run, signal.SIGKILL)
    os.waitpid(another_run, 0)
    with reserved(tmp_path / "out"):
        assert f"{os.getpid()}\n" in (tmp_path / ".out.lock").read_text()


def test_a_place_is_kept_from_the_start_of_a_run_until_it_is_saved(tmp_path):
    pruner = make_pruner(tmp_path / "new" / "out")
    pruner.prune()
    assert names(tmp_path / "new") == {".out.lock"}
    pruner.save_model()
    assert names(tmp_path / "new") == {"out"}
    with pytest.raises(ValueError, match="not empty"):
        pruner.save_model()
    with pytest.raises(ValueError, match="out of reach"):
        make_pruner(tmp_path / "other" / "out", target_reduction=0.99).prune()
    assert names(tmp_path) == {"new"}  # neither lock nor folders that were made for it


# ---- what lies in the place


def test_relative_folders_start_where_the_run_did(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    tiny_model().save_pretrained(tmp_path / "dense")
    write(tmp_path / "dense" / "LICENSE")
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained("dense")
    options = {"save_strategy": "steps", "num_rounds": 1, "save_scores": "scores.json"}
    pruner = make_pruner(Path("out"), during=lambda: os.chdir("elsewhere"), model=model, **options)
    pruner.prune()
    pruner.state.best_model_checkpoint = str(tmp_path / "out" / "checkpoint-1")
    pruner.save_model()
    assert names(tmp_path) == {"dense", "elsewhere", "out", "scores.json"} and not names(tmp_path / "elsewhere")
    assert {"LICENSE", "model.safetensors"} <= names(tmp_path / "out")
    # What is published tells of no folder of this machine.
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file


def test_what_came_into_the_folder_meanwhile_goes_along(tmp_path):
    out = tmp_path / "out"
    pruner = make_pruner(out, during=lambda: write(out / "notes.txt") and write(out / "runs" / "events"), save_strategy="steps")
    pruner.prune()
    pruner.save_model()
    assert (out / "notes.txt").is_file() and (out / "runs" / "events").is_file() and (out / "model.safetensors").is_file()
    assert not list(out.glob("checkpoint-*")) and names(tmp_path) == {"out"}


@pytest.mark.usefixtures("report_pages")
@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "plots"])
def test_what_cannot_go_along_stays_and_the_model_is_kept_beside(name, tmp_path):
    out = tmp_path / "out"
    pruner = make_pruner(out, during=lambda: write(out / name))
    output = pruner.prune()
    with pytest.raises(RuntimeError, match=f"`{name}` came there while the run was on") as caught:
        pruner.save_model()
    assert f"kept in `{out}.finished`" in str(caught.value)
    assert (out / name).read_text() == "weeks of work" and names(tmp_path) == {"out", "out.finished"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out.finished")
    assert torch.equal(logits(loaded, random_batch()), logits(output.model, random_batch()))


def test_overwriting_takes_what_was_there_at_the_start_and_no_more(tmp_path):
    write(tmp_path / "out" / "old.txt")
    pruner = make_pruner(tmp_path / "out", during=lambda: write(tmp_path / "out" / "new.txt"), overwrite_output_dir=True)
    pruner.prune()
    pruner.save_model()
    assert (tmp_path / "out" / "new.txt").is_file() and not (tmp_path / "out" / "old.txt").exists()


def test_a_readme_that_came_meanwhile_and_cannot_be_read_costs_no_model(tmp_path):
    out = tmp_path / "out"
    pruner = make_pruner(out, during=lambda: write(out / "README.md", "---\n: [\n---\nmine"))
    pruner.prune()
    pruner.save_model()
    assert (out / "README.md").read_text().endswith("mine") and (out / "model.safetensors").is_file()


def test_the_folder_of_the_training_may_lie_inside_but_not_be_the_same(tmp_path):
    out = tmp_path / "out"
    options = {
        "recovery": "full",
        "recovery_args": {},
        "training_args": {"max_steps": 1, "use_cpu": True, "save_strategy": "steps"},
    }
    options["training_args"] |= {"save_steps": 1, "output_dir": str(out)}
    refused(lambda: make_pruner(out, **options).prune(), "`training_args`", "the folder of the result")
    for overwrite in (False, True):
        options["training_args"]["output_dir"] = str(out / "training")
        pruner = make_pruner(out, **options, overwrite_output_dir=overwrite)
        pruner.prune()
        pruner.save_model()
        assert (out / "training" / "checkpoint-1").is_dir() and (out / "model.safetensors").is_file()


@pytest.mark.parametrize("as_link", [False, True])
def test_the_models_own_folder_is_never_replaced(as_link, tmp_path, tokenizer, capsys):
    dense, out = tmp_path / "dense", tmp_path / "dense"
    tiny_model().save_pretrained(dense)
    tokenizer.save_pretrained(dense)
    if as_link:
        out = tmp_path / "link"
        out.symlink_to(dense)
    before = {path.name: path.read_bytes() for path in dense.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(dense)
    refused(lambda: make_pruner(out, model=model, overwrite_output_dir=True).prune(), "holds the model to prune", str(dense))
    data = write(tmp_path / "data" / "t.txt")
    words = ["prune", "--overwrite_output_dir", "--calibration_file", str(data), "--model_name_or_path", str(dense)]
    for folder_, told in ((out, dense), (data.parent, data)):
        assert main([*words, "--output_dir", str(folder_)]) == 2
        assert f"holds what this run reads (`{told}`)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in dense.iterdir()} == before and data.is_file()


# ---- what killed runs leave


def test_leavings_of_killed_runs_are_swept_by_the_next_one_to_have_the_place(tmp_path):
    out = tmp_path / "out"
    write(tmp_path / ".out.ab12cd_9.partial" / "model.safetensors")
    write(out / "checkpoint-3.tmp" / "pruning_plan.json")
    others = {".out.v2.ab12cd_9.partial", ".other.ab12cd_9.partial", ".out.partial", ".out.old-x"}
    for name in others:
        write(tmp_path / name / "model.safetensors")
    make_pruner(out).prune()
    assert names(tmp_path) == {*others, "out"} and not names(out)


def test_a_replacement_that_was_killed_half_way_is_undone_or_ended(tmp_path):
    out = tmp_path / "out"
    write(tmp_path / ".out.old-7" / "checkpoint-2" / "pruning_plan.json")
    write(tmp_path / ".out.old-7" / "runs" / "events")
    with reserved(out):  # the old folder was gone, the new one not there yet
        assert names(out) == {"checkpoint-2", "runs"}
    write(tmp_path / ".out.old-7" / "notes.txt")
    for name in ("model.safetensors", "checkpoint-2/pruning_plan.json", "checkpoint-2/final_sizes.json", "runs/new"):
        write(tmp_path / ".out.old-7" / name)
    shutil.rmtree(out / "runs")
    write(out / "config.json")
    with reserved(out):
        assert names(out) == {"checkpoint-2", "config.json", "notes.txt", "runs"}
    assert names(tmp_path) == {"out"}


def test_the_self_check_ends_with_its_parent():
    with subprocess.Popen(
        [sys.executable, selfcheck.__file__, *"abcdef"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdin.close()
        assert child.wait(60) == 1
        assert child.stderr.read() == b""  # it did not come to reading its arguments


# ---- full disks


def full_disk(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - free, free))


def told_of_room(call, what: str) -> None:
    with pytest.raises(OSError, match=what) as caught:
        call()
    assert "MB are free" in str(caught.value) and "it needs" in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_is_told_before_the_work_and_before_writing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    pruner = make_pruner(out, save_strategy="steps", compensation="bias")
    with monkeypatch.context() as patch:
        full_disk(patch, 1000)
        told_of_room(pruner.prune, "The pruned model cannot be written")
    pruner.prune()
    full_disk(monkeypatch, 1000)
    told_of_room(pruner.save_model, "The pruned model cannot be written")
    assert names(out) == {"checkpoint-1", "checkpoint-2"} and names(tmp_path) == {"out"}


@pytest.mark.parametrize(
    "raised", [OSError(28, "No space left on device"), SafetensorError("No space left (os error 28)")], ids=repr
)
def test_a_disk_that_fills_up_while_writing_leaves_nothing_half_written(raised, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(_model, file, *_args, **_kwargs):
        write(Path(file) / "half" if Path(file).is_dir() else Path(file))
        raise raised

    pruner = make_pruner(
        out,
        during=lambda: monkeypatch.setattr(checkpoint, "save_model", full),
        save_strategy="steps",
        compensation="bias",
        num_rounds=3,
    )
    told_of_room(pruner.prune, "The checkpoint of round 1 cannot be written")
    assert names(out) == set() and names(tmp_path) == {"out"}
    monkeypatch.undo()
    pruner = make_pruner(out, save_strategy="steps", compensation="bias")
    pruner.prune()
    monkeypatch.setattr(folder, "_save_pretrained", full)
    told_of_room(pruner.save_model, "The pruned model cannot be written")
    assert names(out) == {"checkpoint-1", "checkpoint-2"} and names(tmp_path) == {"out"}


def test_a_place_that_takes_no_file_is_told_in_one_line(tmp_path, monkeypatch):
    """As on /proc: its folder says that it can be written to."""

    def refuse(*_args, **_options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("filelock.SoftFileLock.acquire", refuse)
    refused(
        lambda: reserved(tmp_path / "out").__enter__(), "cannot be made: No such file or directory", "Name a folder elsewhere"
    )
