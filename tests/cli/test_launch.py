"""`cria prune` started by `accelerate launch`, as a user types it: two processes (gloo) on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model
from pruning_together import command

from hf_spectral_prune.cli.main import main as cria

pytestmark = pytest.mark.slow
_PATIENCE = 1200  # seconds; 30 on an idle machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("launched")
    tiny_model().save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    (folder / "text.txt").write_text(" ".join(f"w{3 + index * index % 90}" for index in range(400)))
    return folder


def launch(words: list[str], processes: int = 2) -> tuple[int, str, str]:
    """Exit status and both outputs of `accelerate launch --multi_gpu`; all processes are ended if they hang."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    accelerate = Path(sys.executable).with_name("accelerate")
    start = [accelerate, "launch", "--multi_gpu", "--num_processes", str(processes), "--main_process_port", port]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    launcher = subprocess.Popen(
        [*start, "-m", "hf_spectral_prune", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = launcher.communicate(timeout=_PATIENCE)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.communicate()
    return launcher.returncode, out, err


@pytest.fixture(scope="module")
def launched(folder):
    return launch(command(folder))


def test_two_processes_write_the_files_of_one(launched, folder, tmp_path):
    status, _, err = launched
    assert status == 0, err
    words = [word.replace(str(folder / "cria"), str(tmp_path / "alone")) for word in command(folder)]
    assert cria(words) == 0
    for name in ("model.safetensors", "config.json", "pruning_plan.json", "pruning_scores.json"):
        assert (folder / "cria" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_only_the_first_process_speaks(launched):
    _, out, err = launched
    assert out.count("Saved in") == 1
    assert err.count("is one text") == 1


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--target_reduction", "5"], "`target_reduction` is 5"),  # before the processes have met
        (["--target_reduction", "0.99"], "is out of reach"),  # found after the scoring
    ],
)
def test_bad_input_ends_all_and_is_told_once(folder, tmp_path, given, line):
    words = [word.replace(str(folder / "cria"), str(tmp_path / "refused")) for word in command(folder)]
    status, _, err = launch([*words, *given])
    told = [text for text in err.splitlines() if text.startswith("cria prune")]
    assert len(told) == 1 and line in told[0], err
    # The launcher itself ends with 1, and says in its summary what its processes ended with.
    assert status == 1 and "exitcode  : 2" in err
    assert not (tmp_path / "refused").exists()
