"""An overview image for the README, from the folder that `cria demo` left: light and dark, two SVG files.

    python benchmarks/readme_picture.py cria-smollm2 --output docs/figures/overview

Left: parameters, size, held-out perplexity and, where measured, speed after the cut, as a share of the dense model's.
Right: the leading eigenvalues of the spectral distortion in every FFN layer, the largest one marked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hf_spectral_prune.planning import SCORES_FILE, scores_from_json
from hf_spectral_prune.utils.plot_style import DARK, LIGHT, in_style

THEMES = {"light": LIGHT, "dark": DARK}


def bars(report: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(what, before, after) of the figures that the demo prints; without speeds where the run has none."""
    rows = [("parameters", report["parameters_before"], report["parameters_after"])]
    rows.append(("weights, MB", report["size_on_disk_before"] / 1e6, report["size_on_disk"] / 1e6))
    before, after = report["metrics_before"], report["metrics_after"]
    rows.append(("perplexity", before["before_perplexity"], after["after_perplexity"]))
    speed = report.get("latency")
    for name in ("prefill", "decode") if speed else ():
        key = f"{name}_tokens_per_second"
        rows.append((f"{name}, tokens/s", speed["before"][key], speed["after"][key]))
    return rows


def draw(report: dict[str, Any], spectra: dict[str, Sequence[float]], colours: dict[str, str]) -> Figure:
    """Both panels on a transparent ground."""
    with in_style(colours), mpl.rc_context({"font.family": "sans-serif"}):
        figure = Figure(figsize=(9.6, 3.6), facecolor="none")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.25], "wspace": 0.16})
        _draw_bars(left, bars(report), colours)
        _draw_spectra(right, spectra, colours)
        figure.subplots_adjust(left=0.14, right=0.985, top=0.88, bottom=0.13)
    return figure


def _draw_bars(axis: Any, rows: list[tuple[str, float, float]], colours: dict[str, str]) -> None:
    axis.set_title("SmolLM2-135M, pruned without training")
    for row, (_, before, after) in enumerate(rows):
        axis.barh(row - 0.2, 100, 0.34, color=colours["pale"])
        axis.barh(row + 0.2, 100 * after / before, 0.34, color=colours["kept"])
        axis.text(3, row - 0.2, _number(before), va="center", fontsize=8.5, color=colours["ink"])
        shown = f"{_number(after)}  ({after / before - 1:+.0%})"
        axis.text(3, row + 0.2, shown, va="center", fontsize=8.5, color=colours["paper"])
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axis.tick_params(axis="y", length=0, labelcolor=colours["ink"])
    axis.set_xticks([0, 50, 100], ["0", "50", "100 %"])
    axis.set_xlabel("of the dense model")
    axis.invert_yaxis()
    axis.spines["left"].set_visible(False)


def _draw_spectra(axis: Any, spectra: dict[str, Sequence[float]], colours: dict[str, str]) -> None:
    axis.set_title("Spectral distortion per layer")
    for layer, values in enumerate(spectra.values()):
        found = [value for value in values if value > 0]
        axis.plot([layer] * len(found[1:]), found[1:], "_", color=colours["kept"], markersize=6, markeredgewidth=1.1)
        axis.plot([layer], found[:1], "_", color=colours["removed"], markersize=8, markeredgewidth=2)
    axis.set_yscale("log")
    axis.set_xlabel("layer")
    axis.set_ylabel("eigenvalue λ", labelpad=2)
    axis.minorticks_off()


def _number(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes `<output>-light.svg` and `<output>-dark.svg`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="What `cria demo` saved.")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/overview"))
    options = parser.parse_args(argv)
    report = json.loads((options.folder / "pruning_report.json").read_text(encoding="utf-8"))
    rounds = scores_from_json((options.folder / SCORES_FILE).read_text(encoding="utf-8"))
    spectra = {key: group.spectrum for key, group in rounds[0].items() if key.endswith("ffn")}
    for theme, colours in THEMES.items():
        target = options.output.with_name(f"{options.output.name}-{theme}.svg")
        with mpl.rc_context({"svg.hashsalt": "overview"}):
            draw(report, spectra, colours).savefig(target, format="svg", transparent=True, metadata={"Date": None})
        print(target)


if __name__ == "__main__":
    main()
