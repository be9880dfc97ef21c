"""Fresh Python processes at the price of a fork: a server has imported torch and transformers, and nothing of this package.

What takes seconds in a new process is those imports, not the test. A test that proves something about the start of a process
starts a real one. Started as `python forks.py`, the server answers one line of JSON with another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any


class ForkServer:
    """Starts the server at the first use; its processes have the shape of those of `subprocess`."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None, **options: Any):
        """As `subprocess.run(command, capture_output=True, text=True)`, for `[python, script, ...]` or `[python, "-c", ...]`."""
        options.pop("stdin", None)  # a forked process has one of its own, that stays open
        assert options == {"capture_output": True, "text": True, "check": False}
        with _scratch() as out, _scratch() as err:
            code = self.start(command, cwd=cwd, env=env, stdout=out, stderr=err).wait()
            return subprocess.CompletedProcess(command, code, _text(out), _text(err))

    def start(self, command: list[str], *, stdout: IO, stderr: IO, cwd=None, env=None) -> Forked:
        """As `subprocess.Popen`, with both outputs in files."""
        assert command[0] == sys.executable
        place = {"cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        files = {"stdout": stdout.name, "stderr": stderr.name}
        return Forked(self, self.ask({"start": [str(word) for word in command[1:]]} | place | files))

    def ask(self, question: dict) -> Any:
        """The server's answer to one line."""
        if self._server is None:
            pipe = subprocess.PIPE
            self._server = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def end(self) -> None:
        """Ends the server, if it was started."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()


class Forked:
    """One process of the server."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.server, self.pid, self.code = server, pid, None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.server.ask({"poll": self.pid})
        return self.code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            self.server.ask({"kill": self.pid})


def _scratch() -> IO:
    return tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace")


def _text(file: IO) -> str:
    file.seek(0)
    return file.read()


# ---- the server


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to stderr
    _import_what_takes_long()
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer = os.fork()
            if answer == 0:
                _become(question)
        elif "kill" in question:
            answer = os.kill(question["kill"], 9)
        else:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_what_takes_long() -> None:
    import torch

    torch.set_num_threads(1)
    import accelerate  # noqa: F401
    import safetensors.torch  # noqa: F401
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    for name in ("AutoModelForCausalLM", "AutoModelForImageClassification", "Trainer"):
        getattr(transformers, name)
    assert "hf_spectral_prune" not in sys.modules


def _become(question: dict) -> None:
    """Goes on as a new Python process would that was given these words."""
    code = 1
    try:
        # Both ends are held here, so that it neither ends nor has anything to read: the self-check would end with it.
        os.dup2(os.pipe()[0], 0)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(question[name], os.O_WRONLY | os.O_APPEND), number)
        os.chdir(question["cwd"])
        os.environ.clear()
        os.environ.update(question["env"])
        _take_environment()
        _execute(question["start"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_environment() -> None:
    """The variables that were read when the server imported its modules."""
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if modules := os.environ.get("HF_MODULES_CACHE"):
        for name in ("transformers.utils", "transformers.utils.hub", "transformers.dynamic_module_utils"):
            sys.modules[name].HF_MODULES_CACHE = modules


def _execute(words: list[str]) -> None:
    main = type(sys)("__main__")
    sys.modules["__main__"] = main
    sys.argv = words if words[0] != "-c" else ["-c", *words[2:]]
    if words[0] == "-c":
        sys.path.insert(0, "")
        source, name = words[1], "<string>"
    else:
        sys.path.insert(0, str(Path(words[0]).parent))
        source, name = Path(words[0]).read_text(encoding="utf-8"), words[0]
        main.__file__ = name
    exec(compile(source, name, "exec"), main.__dict__)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, whose modules no new process would find
    _serve()
