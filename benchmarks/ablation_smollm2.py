"""The true damage of single units of SmolLM2-135M, and the rank correlation of every criterion's scores with it.

    python benchmarks/ablation_smollm2.py --wikitext FOLDER [--sequences 4] [--output results.json]

FOLDER holds `train.txt.gz` and `test.txt.gz` in the word-level form. Protocol: ` <unk> ` read as ` unk `, one token stream;
criteria are calibrated on the first 32 x 512 tokens of train; damage is the exact change of the mean loss over the first
`--sequences` x 512 tokens of test when one unit is masked. Sample: 64 FFN neurons of 1,536, drawn at random, and all three
key/value groups in each of the layers 3, 11, 18 and 26 of 30, the middles of four equal parts. Scores and damages are kept
in `--work` as they come, so that a killed run continues.

The damage of a single neuron is small against its noise over text. The results state its standard error over sequences and
how well the damages on two halves of the text agree, which bounds what any criterion can reach.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from smollm2_wikitext import find_model, wikitext

from hf_spectral_prune.criteria import CRITERIA
from hf_spectral_prune.studies.ablation import AblationArguments, ablate, table

CALIBRATION_BLOCKS = 32
# The criteria that differentiate again and again would take longer than the truth itself: fewer sequences and steps.
OPTIONS = {
    "spectral, loss": {"criterion": "spectral", "signals": "loss"},
    "integrated_gradients": {"num_sequences": 2, "num_steps": 8, "max_steps": 8, "tolerance": 0.1},
    "ndi": {"num_probes": 1, "num_curvature_sequences": 4},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the table and writes the results."""
    labels = sorted({*CRITERIA, *OPTIONS})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--criteria", nargs="+", default=labels, choices=labels, metavar="NAME")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 11, 18, 26])
    parser.add_argument("--units", nargs="+", default=["ffn", "heads"])
    parser.add_argument("--units_per_layer", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("ablation_smollm2_work"), help="Folder for finished parts.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ablation_smollm2.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    arguments = AblationArguments(
        output_dir=str(options.work),
        criteria=options.criteria,
        criteria_args={label: values for label, values in OPTIONS.items() if label in options.criteria},
        units=options.units,
        layers=options.layers,
        units_per_layer=options.units_per_layer,
        seed=0,
    )
    model, tokenizer = find_model()
    calibration = wikitext(options.wikitext, "train", CALIBRATION_BLOCKS, tokenizer)
    held_out = wikitext(options.wikitext, "test", options.sequences, tokenizer)
    result = ablate(model, arguments, calibration, held_out, tokenizer, report=lambda line: print(line, flush=True))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".png"):
        if (made := options.work / f"ablation{suffix}").is_file():
            shutil.copyfile(made, options.output.with_suffix(suffix))
    print(f"\n{table(result)}")
    for label, error in result.failed.items():
        print(f"`{label}` failed: {error}")


if __name__ == "__main__":
    main()
