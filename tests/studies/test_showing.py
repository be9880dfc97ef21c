"""Colours of the studies' plots: none stands for two series."""

from hf_spectral_prune.studies.showing import COLOURS, GREY, HIGHLIGHTED, series_colours


def test_few_series_have_a_colour_each():
    labels = [f"c{index}" for index in range(len(COLOURS))]
    assert list(series_colours(labels).values()) == list(COLOURS)


def test_of_many_series_four_stand_out_and_the_rest_is_grey():
    labels = [f"c{index}" for index in range(12)]
    colours = series_colours(labels, ["c11", "gone", "c3"])
    shown = [label for label in labels if colours[label] != GREY]
    assert shown == ["c0", "c1", "c3", "c11"] and len({colours[label] for label in shown}) == HIGHLIGHTED
    assert list(colours) == labels
