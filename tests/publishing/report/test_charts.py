"""The charts: readable at any depth, true to the scores, coloured by the page."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from hf_spectral_prune.planning import GroupScores
from hf_spectral_prune.publishing.report import charts
from hf_spectral_prune.publishing.report.drawing import short_names
from hf_spectral_prune.publishing.report.svg import to_png, to_svg
from hf_spectral_prune.utils.plot_style import LIGHT


def group(seed: int, units: int = 1536, kept: int = 1300) -> GroupScores:
    """Scores of one layer over a few decades."""
    values = np.sort(np.exp(np.random.default_rng(seed).normal(seed / 10, 1.5, units)))
    known = values[np.linspace(0, units - 1, min(units, 65)).round().astype(int)].tolist()
    removed = None if kept == units else float(values[units - kept - 1])
    return GroupScores(units, kept, removed, float(values[units - kept]), tuple(known), tuple(np.geomspace(9, 0.1, 24)))


def drawn(name: str, layers: int, prefix: str = ""):
    """One of the charts that have a row or a column for every layer."""
    numbers = [str(layer) for layer in range(layers)]
    labels = [prefix + number for number in numbers]
    if name == "widths":
        return charts.widths({"FFN neurons": (labels, [11008] * layers, list(range(11008 - 8 * layers, 11008, 8)))})
    if name == "spectra":
        return charts.spectra(
            "FFN neurons", {label: group(int(number)).spectrum for label, number in zip(labels, numbers, strict=True)}
        )
    units = 3 if name == "few" else 1536
    return charts.scores(
        "FFN neurons",
        {label: group(int(number), units, units - units // 3) for label, number in zip(labels, numbers, strict=True)},
    )


@pytest.mark.parametrize("layers", [1, 2, 30, 100])
@pytest.mark.parametrize("name", ["widths", "scores", "few", "spectra"])
@pytest.mark.parametrize("prefix", ["", "features.denseblock4.conv"])
def test_no_two_words_touch_and_none_leaves_the_figure(prefix, name, layers):
    figure = drawn(name, layers, prefix)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = []
    for axis in figure.axes:
        low, high = axis.get_xlim()
        ticks = [tick for side in (axis.xaxis, axis.yaxis) for tick in side.get_major_ticks()]
        texts = [tick.label1 for tick in ticks if side_shows(axis, tick, low, high)]
        texts += [axis.title, axis._left_title, axis.xaxis.label, *axis.texts, *axis.get_legend().get_texts()]
        boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    assert len(boxes) > 4
    width, height = figure.get_size_inches() * 72
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    touching = [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]
    assert touching == []
    assert height < 1000


def side_shows(axis, tick, low: float, high: float) -> bool:
    """Whether a tick lies within the axis: matplotlib also keeps some beyond its ends."""
    if tick in axis.xaxis.get_major_ticks():
        return low <= tick.get_loc() <= high
    return min(axis.get_ylim()) <= tick.get_loc() <= max(axis.get_ylim())


@pytest.mark.parametrize("kept", [100, 768, 1300, 1530])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_areas_left_and_right_of_the_cut_are_the_shares(kept, logarithmic):
    values = np.sort(np.exp(np.random.default_rng(3).normal(0, 1.0 if logarithmic else 0.3, 1536)))
    known = values[np.linspace(0, 1535, 65).round().astype(int)]
    cut = float(values[1536 - kept - 1 : 1536 - kept + 1].mean())
    areas = {}
    for colour, outline in charts._shape(known, cut, 0, logarithmic=logarithmic):
        x, y = np.array(outline).T
        x = np.log10(x) if logarithmic else x
        areas[colour] = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert (y <= 0.5).all() and (y >= -0.5).all()
    assert areas["kept"] / sum(areas.values()) == pytest.approx(kept / 1536, abs=0.02)


def test_every_unit_is_a_stroke_where_all_are_known():
    short = GroupScores(4, 3, 1.0, 2.0, (1.0, 2.0, 3.0, 4.0))
    figure = charts.scores("Key/value groups", {"0": short})
    strokes = {line.get_color(): sorted(set(line.get_xdata()[::3])) for line in figure.axes[0].get_lines()}
    assert strokes == {LIGHT["removed"]: [1.0], LIGHT["kept"]: [2.0, 3.0, 4.0], LIGHT["ink"]: [1.5]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 2.0], False), ([0.0, 1e-3, 1.0], True), ([-1.0, 1e-3, 1.0], False), ([0.0, 0.0], False), ([1e-9, 1e9], True)],
)
def test_an_axis_is_logarithmic_where_no_score_is_negative_and_they_span_far(values, expected):
    assert charts.is_logarithmic(values) is expected
    charts.scores("t", {"0": GroupScores(len(values), 1, values[-2], values[-1], tuple(values))})


def test_equal_scores_and_whole_layers_are_drawn():
    layers = {"0": GroupScores(100, 60, 0.0, 0.0, (0.0,) * 65), "1": GroupScores(100, 100, None, 1.0, (1.0,) * 65)}
    strokes = {line.get_color(): list(line.get_xdata()[::3]) for line in charts.scores("t", layers).axes[0].get_lines()}
    assert strokes == {LIGHT["kept"]: [0.0, 1.0], LIGHT["ink"]: [0.0]}


def test_an_svg_has_the_pages_colours_and_own_ids_and_is_the_same_again():
    def svg(name):
        return to_svg(drawn("scores", 3), name, 'three <layers> & "more"')

    text = svg("one")
    assert text == svg("one")
    assert 'aria-label="three &lt;layers&gt; &amp; &quot;more&quot;"' in text and 'role="img"' in text
    assert not re.search("#(" + "|".join(value[1:] for value in LIGHT.values()) + ")", text)
    assert {"var(--kept)", "var(--removed)", "var(--ink)"} <= set(re.findall(r"var\(--\w+\)", text))
    ids = set(re.findall(r'id="([^"]+)"', text))
    assert ids and all(name.startswith("one-") for name in ids)
    assert not ids & set(re.findall(r'id="([^"]+)"', svg("two")))
    assert "<style" not in text and "<metadata" not in text and "<!DOCTYPE" not in text
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_dollars_are_no_formula():
    assert "$x_1$" in to_svg(charts.cost({"Seconds": {"$x_1$": 1.0}}), "cost", "bars")


def test_a_png_is_white_and_whole(tmp_path):
    from matplotlib.image import imread

    to_png(drawn("widths", 3), tmp_path / "widths.png")
    figure = imread(tmp_path / "widths.png")
    assert figure.shape[1] > 1000 and (figure[0, 0, :3] == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["widths.png"]


def test_long_names_of_layers_leave_room_for_the_chart():
    stages = [f"resnet.encoder.stages.{index}.layers.0.layer.0.convolution" for index in range(3)]
    assert short_names(stages) == ["…stages.0", "…stages.1", "…stages.2"]
    assert short_names(["0", "10"]) == ["0", "10"]
    assert short_names(["features.0", "head"]) == ["features.0", "head"]
    alike = ["a" + "b" * 30, "c" + "b" * 30]
    assert short_names(alike) == ["1", "2"], "what would be the same is counted"
    resnet = ["embedder.embedder", "encoder.stages.0.layers.0.layer.0", "encoder.stages.1.layers.0.layer.0"]
    assert short_names([f"resnet.{name}" for name in resnet]) == ["embedder", "0.0.0", "1.0.0"]
    figure = charts.scores("Channels", {stage: group(index, 3, 2) for index, stage in enumerate(stages)})
    assert figure.axes[0].get_position().width > 0.6
