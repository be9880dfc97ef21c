"""Starting takes no longer than it must: nothing is imported before it is needed. Told by modules, not by time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hf_spectral_prune import __version__
from hf_spectral_prune.cli.main import COMMANDS


def fresh(code: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


ANSWERS = """
import sys
from hf_spectral_prune.cli.main import COMMANDS, main
for words, code in [
    (["--help"], 0),
    (["--version"], 0),
    ([], 2),
    (["prnue"], 2),
    (["prune", "--taget_reduction", "0.3"], 2),
    (["score", "--no_overwrite", "--criterion=energy"], 2),
    (["evaluate", "--evalfile", "text.txt"], 2),
    (["push", "folder", "--hub_model", "me/model"], 2),
    (["export", "ggfu", "folder"], 2),
    (["card"], 2),
    *(([command, "--taget_reduction", "0.3"], 2) for command in COMMANDS),
]:
    assert main(words) == code, words
    assert not {"torch", "transformers", "numpy"} & sys.modules.keys(), words
for words in [[command] for command in COMMANDS] + [["export", "gguf"], ["export", "onnx"]]:
    try:
        assert main([*words, "--help"]) == 0
    except SystemExit as error:
        assert error.code == 0
    assert "torch" not in sys.modules, words
"""


def test_help_and_mistakes_are_answered_without_torch_or_transformers():
    told = fresh(ANSWERS)
    assert told.startswith("usage: cria COMMAND")
    assert f"cria {__version__}\n" in told
    assert all(f"usage: cria {command}" in told for command in COMMANDS)


def test_package_is_a_command():
    command = [sys.executable, "-m", "hf_spectral_prune", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"cria {__version__}\n"


SIGNAL = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"


def _interrupted(code: str, folder: Path) -> None:
    """Runs the command as a module, whose exit status Python replaces by a signal that it takes for unanswered."""
    begin = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = ['cria', 'prune']\n"
    (folder / "command.py").write_text(f"{begin}from hf_spectral_prune.cli import main\n{code}\nsys.exit(main())")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "command"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1), done.stderr
    assert "Stopped by Ctrl-C" in done.stderr


def test_ctrl_c_while_starting_is_one_line(tmp_path):
    (tmp_path / "wrapt.py").write_text(SIGNAL)
    _interrupted("", tmp_path)


def test_ctrl_c_while_a_module_makes_a_dataclass_is_the_exit_status(tmp_path):
    _interrupted(f"from hf_spectral_prune.cli import parsing\nparsing.parse = lambda *words: exec({SIGNAL!r})", tmp_path)


IMPORTS = """
import sys
import hf_spectral_prune
assert not {"torch", "transformers"} & sys.modules.keys()
from transformers import AutoModelForCausalLM
loaded = [name for name in sys.modules if name.rpartition(".")[2].startswith(("modeling_", "configuration_", "cria_"))]
auto = {"modeling_auto", "configuration_auto"}
assert [] == [name for name in loaded if name.startswith(("transformers.models.", "hf_")) and name.rpartition(".")[2] not in auto]
assert "peft" not in sys.modules
from hf_spectral_prune import SpectralPruner, SpectralPruningCallback, recover
# Not PEFT: transformers' trainer imports it by itself.
assert not {"matplotlib", "evaluate", "sentence_transformers"} & sys.modules.keys()
"""


def test_importing_loads_no_model_code_and_no_library_that_only_some_use():
    fresh(IMPORTS)
