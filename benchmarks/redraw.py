"""Draws the committed figures anew from the committed results, after a change of style: `python benchmarks/redraw.py`.

It measures nothing. The README's figure and those of docs/method.md are drawn from a saved folder: see readme_picture.py and
`cria report`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import differentiation_figures
import pipeline_figure

from hf_spectral_prune.studies.ablation import plot as ablation
from hf_spectral_prune.studies.ablation.results import KINDS, TRUTHS
from hf_spectral_prune.studies.comparison import block_name
from hf_spectral_prune.studies.comparison import draw as draw_comparison

HERE = Path(__file__).parent


def draw_criteria(result: Mapping[str, Any], path: Path) -> None:
    """The comparison of all criteria."""
    panels: dict[str, list] = {}
    for text, values in result["calibrations"].items():
        for cell in values["cells"]:
            panels.setdefault(f"calibrated on {text}; {block_name(cell)}", []).append(cell)
    draw_comparison(panels, result["dense"], result["metric"], path)


def ablation_panels(result: Mapping[str, Any]) -> list[ablation.Panel]:
    """What the plot of an ablation shows, from its JSON file; see `studies.ablation.results.panels`."""
    panels = []
    for kind, summary in result["summary"].items():
        groups = [group for group in result["groups"].values() if group["kind"] == kind]
        name = f"{KINDS.get(kind, kind)}, {max(len(group['units']) for group in groups)} per layer"
        for prefix, truth in (("", TRUTHS["damage"]), ("shift_", TRUTHS["shift"])):
            series = [
                ablation.Series(
                    label,
                    [group[f"{prefix}agreement"][label]["spearman"] for group in groups],
                    found[f"{prefix}spearman"]["mean"],
                    found[f"{prefix}spearman"]["interval"],
                )
                for label, found in summary.items()
            ]
            itself = [group[f"{prefix}reliability"] for group in groups]
            panels.append(
                ablation.Panel(
                    name,
                    truth,
                    [group["layer"] for group in groups],
                    series,
                    [group["chance"]["spearman_interval"] for group in groups],
                    [None if value is None else value**0.5 for value in itself],
                )
            )
    return panels


def main() -> None:
    """Draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=HERE.parent / "docs" / "figures")
    options = parser.parse_args()

    def results(name: str) -> Any:
        return json.loads((options.results / f"{name}.json").read_text(encoding="utf-8"))

    draw_criteria(results("criteria_smollm2"), options.figures / "criteria_smollm2.png")
    ablation.draw(ablation_panels(results("ablation_smollm2")), options.figures / "ablation_smollm2.png")
    found = results("differentiation_figures")
    differentiation_figures.draw(found, [int(seed) for seed in found["curves"]], options.figures)
    pipeline_figure.write(options.figures / "pipeline.svg")


if __name__ == "__main__":
    main()
