"""Runs that are killed or stopped anywhere: the next one goes on and ends with the very same files."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import write_inputs
from products import only

from hf_spectral_prune.cli import main
from hf_spectral_prune.saving import checkpoint

pytestmark = pytest.mark.usefixtures("report_pages")

KILLS = 20
# Whatever changes a folder, by the names of Python's audit events.
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")


@pytest.fixture(scope="module")
def given(tmp_path_factory, tokenizer) -> Path:
    """A model with its tokenizer, and a text."""
    return write_inputs(tmp_path_factory.mktemp("given"), tokenizer, words=1_000)


def words(given: Path, out: Path) -> list[str]:
    options = {"model_name_or_path": given / "model", "calibration_file": given / "text.txt", "output_dir": out}
    options |= {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "num_rounds": 3}
    options |= {"max_seq_length": 32, "num_calibration_samples": 8, "num_eval_samples": 0, "save_strategy": "steps"}
    options |= {"compensation": "least_squares", "self_check": False, "criterion": "energy", "allocation": "scores"}
    options["resume_from_checkpoint"] = "latest"  # also where there is none yet: one command, whatever happened before
    return ["prune", "--disable_tqdm", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def checkpoint_of(out: Path) -> bool:
    return out.is_dir() and checkpoint.latest(out) is not None


def run(given: Path, out: Path, at: int = 0, how: signal.Signals = signal.SIGKILL) -> tuple[int, int, str]:
    """`cria prune` in a forked process, which gets a signal at its change number `at` to the folder or what lies beside it.

    Returns:
        exit code, negative for a signal; number of changes; what it said on stderr.
    """
    log, count = out.with_name("log"), out.with_name("count")
    pid = os.fork()
    if pid == 0:
        changes = 0

        def watch(event: str, args: Sequence) -> None:
            nonlocal changes
            if event in CHANGES and isinstance(args[0], str | Path) and out.name in str(args[0]) and args[1:2] != ("r",):
                changes += 1
                if changes == at:
                    os.kill(os.getpid(), how)

        # As in a terminal: a shell starts what it runs in the background with Ctrl-C ignored, which a process inherits.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)
        arguments = words(given, out)
        sys.addaudithook(watch)
        code = 99
        try:
            code = main(arguments)
        finally:
            total, at = changes, -1
            count.write_text(str(total))
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    changes = int(count.read_text()) if count.exists() else 0
    said = log.read_text()
    for file in (log, count):
        file.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), changes, said


def model_of(out: Path) -> dict[str, bytes]:
    """Every file that must not differ; figures of time and memory do."""
    told = ("pruning_report.json", "report.html", "README.md", "pruner_state.json")
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file() and path.name not in told}


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory) -> tuple[dict[str, bytes], int]:
    """The files of a run that nothing stopped, and its number of changes."""
    out = tmp_path_factory.mktemp("whole") / "the_result"
    code, changes, said = run(given, out)
    assert code == 0, said
    assert changes > 2 * KILLS
    return model_of(out), changes


@pytest.mark.parametrize("point", only(range(0, KILLS, 7), range(KILLS)))
def test_a_run_that_was_killed_anywhere_ends_with_the_same_files(point, given, whole, tmp_path):
    files, changes = whole
    out = tmp_path / "the_result"
    at = 1 + round(point * (changes - 1) / (KILLS - 1))
    code, _, said = run(given, out, at)
    assert code == -signal.SIGKILL, said
    ended = (out / "config.json").exists()
    if not ended:
        code, _, said = run(given, out)
        assert code == 0, said
    assert model_of(out) == files
    assert ended or os.listdir(tmp_path) == ["the_result"]


@pytest.mark.parametrize(("how", "code", "by"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
@pytest.mark.parametrize("share", only([0.3], [0.02, 0.3, 0.8]))
def test_a_run_that_is_stopped_says_how_to_go_on(share, how, code, by, given, whole, tmp_path):
    files, changes = whole
    out = tmp_path / "the_result"
    found, _, said = run(given, out, max(2, round(share * changes)), how)
    assert found == code, said
    assert said.strip().splitlines()[-1].startswith(f"cria prune: Stopped by {by}.")
    assert "Traceback" not in said
    assert ("--resume_from_checkpoint latest" in said) == (share > 0.1) == checkpoint_of(out)
    assert {path.name for path in tmp_path.iterdir()} <= {"the_result"}
    assert run(given, out)[0] == 0
    assert model_of(out) == files
