"""The style of all plots: no colour means two things, in light and in dark, and no plot has a palette of its own."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest

import hf_spectral_prune
from hf_spectral_prune.utils import plot_style
from hf_spectral_prune.utils.plot_style import CLASSES, DARK, GREY, HIGHLIGHTED, LIGHT, SERIES, in_style, series_colours

PACKAGE = Path(hf_spectral_prune.__file__).parent


@pytest.mark.parametrize("colours", [list(LIGHT.values()), list(DARK.values()), [*SERIES, GREY], list(CLASSES)])
def test_no_colour_of_a_set_is_there_twice(colours):
    assert len(set(colours)) == len(colours)


def test_themes_colour_the_same_names():
    assert list(LIGHT) == list(DARK)
    with in_style(DARK):
        assert mpl.rcParams["text.color"] == DARK["ink"]
        assert mpl.rcParams["axes.titlelocation"] == "left"
    with in_style():
        assert mpl.rcParams["text.color"] == LIGHT["ink"]


def test_no_other_module_names_a_colour():
    own = Path(plot_style.__file__)
    colour = re.compile(r'"#(?!000000)[0-9A-Fa-f]{3,8}"|color="black"')  # matplotlib's own black is what pages replace
    named = {path: colour.findall(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    assert {path.name for path, found in named.items() if found} == {own.name}


def test_few_series_have_a_colour_each():
    labels = [f"c{index}" for index in range(len(SERIES))]
    assert list(series_colours(labels).values()) == list(SERIES)


def test_of_many_series_four_stand_out_and_the_rest_is_grey():
    labels = [f"c{index}" for index in range(12)]
    colours = series_colours(labels, ["c11", "gone", "c3"])
    shown = [label for label in labels if colours[label] != GREY]
    assert shown == ["c0", "c1", "c3", "c11"] and len({colours[label] for label in shown}) == HIGHLIGHTED
    assert list(colours) == labels
