"""What a whole run of `cria prune` takes: processor time and peak resident memory of the process, step by step.

    python benchmarks/run_costs.py MODEL_FOLDER TEXT_FILE [--output costs.json] [-- OPTIONS OF cria prune]

By default 16 calibration rows and 4 evaluation rows of 128 tokens; the other options are those of `cria prune`. Processor time
rather than time on the clock, because it says the same on a busy machine. Resident memory is read every 20 ms. The options go
into the result, with the plan's digest: a change that saves time must leave that as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from hf_spectral_prune.cli.main import main as cria
from hf_spectral_prune.saving import output as costs
from hf_spectral_prune.utils.environment import library_versions, machine

OPTIONS = ["--num_calibration_samples", "16", "--max_seq_length", "128", "--num_eval_samples", "4", "--self_check", "False"]


class Watch:
    """Processor seconds and highest resident bytes of each step of a run."""

    def __init__(self) -> None:
        self.step = "start"
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.peaks[self.step] = max(self.peaks.get(self.step, 0), process.memory_info().rss)
            time.sleep(0.02)

    @contextmanager
    def of(self, _costs: object, step: str) -> Iterator[None]:
        """In place of `StepCosts.of`."""
        before, self.step = self.step, step
        start = time.process_time()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.process_time() - start
        self.step = "rest" if before == "start" else before


def forward_seconds(folder: Path, rows: int, length: int) -> float:
    """Processor seconds of a plain forward pass over as many tokens, in the type of the weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    ids = torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(ids[:1])
        start = time.process_time()
        for batch in ids.split(8):
            model(batch, use_cache=False)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--output", type=Path, default=Path("run_costs.json"))
    parser.add_argument("--forward", action="store_true", help="measure a plain forward pass over 16 x 128 tokens instead")
    own, options = (sys.argv[1:], []) if "--" not in sys.argv else _split(sys.argv[1:])
    given = parser.parse_args(own)
    if given.forward:
        print(json.dumps({"forward": forward_seconds(given.model, 16, 128), "machine": machine()}))
        return
    watch = Watch()
    kind = next(value for name, value in vars(costs).items() if name.endswith("Costs"))
    kind.of = lambda self, step: watch.of(self, step)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model_name_or_path", str(given.model), "--calibration_file", str(given.text), *OPTIONS, *options]
        cria(["prune", *words, "--output_dir", f"{folder}/out"])
        plan = json.loads((Path(folder) / "out" / "pruning_plan.json").read_text())
    weights = sum(file.stat().st_size for file in given.model.glob("*.safetensors"))
    peak = max(watch.peaks.values())
    result = {
        "options": [*OPTIONS, *options],
        "weights_gib": weights / 2**30,
        "peak_gib": peak / 2**30,
        "above_weights_gib": (peak - weights) / 2**30,
        "peaks_gib": {step: value / 2**30 for step, value in watch.peaks.items()},
        "processor_seconds": watch.seconds | {"all": time.process_time() - start},
        "plan": hashlib.sha256(json.dumps(plan["kept"], sort_keys=True).encode()).hexdigest()[:16],
        "machine": machine(),
        "versions": library_versions(),
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--")
    return words[:at], words[at + 1 :]


if __name__ == "__main__":
    main()
