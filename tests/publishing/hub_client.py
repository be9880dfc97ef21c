"""A process that runs Python lines with the real client against the test Hub; its imports are paid for once.

Started by `Client` below as `python hub_client.py with_package|without_package`. Each line on stdin is a JSON object with the
source to run and its values; each answer on stdout is what the source left in `result`. All other output goes to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


class Client:
    """The other end of that process.

    Args:
        place: folder for the Hub's cache, remote code, and all that the process prints (`output.txt`).
        endpoint: address of the Hub.
        package: whether this package can be imported there.
    """

    def __init__(self, place: Path, endpoint: str, *, package: bool) -> None:
        place.mkdir()
        self.place, self.output = place, place / "output.txt"
        drop = ["HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE"]
        drop += [] if package else ["PYTHONPATH"]  # the package under test may be found by it
        environment = {name: value for name, value in os.environ.items() if name not in drop}
        # HF_DEBUG makes the client log every request, so that a token would show.
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(place / "home"), "HF_MODULES_CACHE": str(place / "modules")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "debug"}
        command = [sys.executable, "-u", __file__, "with_package" if package else "without_package"]
        with self.output.open("w") as output:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=output, env=environment, cwd=place, text=True
            )
        self.waiting = 0
        # Not waited for: processes and tests get ready at the same time.
        self.send(
            "import hf_spectral_prune.cli.main, hf_spectral_prune.publishing.hub" if package else "import transformers, torch"
        )

    def send(self, source: str, **values: Any) -> None:
        """Starts some lines without waiting for their end."""
        self.waiting += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"source": source, "values": values}) + "\n")
        self.process.stdin.flush()

    def run(self, source: str, **values: Any) -> Any:
        """Runs some lines and returns what they leave in `result`."""
        self.send(source, **values)
        assert self.process.stdout is not None
        while self.waiting:
            self.waiting -= 1
            answer = json.loads(self.process.stdout.readline() or '{"error": "the process has ended"}')
            assert "error" not in answer, f"{answer['error']}\n{self.output.read_text()[-3000:]}"
        return answer["result"]

    def cria(self, *words: str) -> tuple[int, str]:
        """Runs a `cria` command; returns its exit code and all that it printed."""
        before = self.output.stat().st_size
        code = self.run("from hf_spectral_prune.cli.main import main\nresult = main(words)", words=[str(word) for word in words])
        return code, self.output.read_bytes()[before:].decode()

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


class _Missing:
    """Makes a package unknown to imports, as where it was never installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "hf_spectral_prune":
            raise ModuleNotFoundError(f"No module named {name!r}")


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path.pop(0)
    if sys.argv[1] == "without_package":
        sys.meta_path.insert(0, _Missing())  # type: ignore[arg-type]
    for line in sys.stdin:
        request = json.loads(line)
        names: dict[str, Any] = {"result": None, **request["values"]}
        try:
            exec(request["source"], names)
            answer = {"result": names["result"]}
        except BaseException:  # tests see what went wrong there
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
