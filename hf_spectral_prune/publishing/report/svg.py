"""Figures for a page: inline SVG whose colours are the page's own (so that it follows light and dark), and PNG files."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.files import write_png
from ...utils.plot_style import LIGHT, PAGE_LETTERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NO_METADATA: dict[str, None] = dict.fromkeys(["Creator", "Date", "Format", "Type"])
_DPI = 224
# Pixels for a point, at most.
_LARGEST = 1.5


def to_svg(figure: Figure, name: str, text: str) -> str:
    """A figure as an `<svg>` element for an HTML page.

    Args:
        name: of letters, digits and hyphens; it keeps this figure's ids apart from those of others on the page.
        text: what the plot shows, for those who do not see it.
    """
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(out.getvalue())
    for parent in root.iter():
        for child in list(parent):
            # The style rule would hold for the whole page, and the metadata is a licence notice about the plot's format.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    _own_ids(root, name)
    # As wide as the page, but no wider than its letters bear; `viewBox` keeps its proportions.
    width = float(root.attrib["width"].removesuffix("pt"))
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": text, "style": f"max-width: {width * _LARGEST:.0f}px"}
    markup = ET.tostring(root, encoding="unicode")
    for colour, value in LIGHT.items():
        markup = markup.replace(value, f"var(--{colour})")
    markup = markup.replace("#000000", "var(--ink)")
    # The page says how large letters are where it is wide: charts are laid out for those of a phone.
    markup = re.sub(r"\b(font|font-size): ([\d.]+)px", r"\1: calc(\2px * var(--letters))", markup)
    return re.sub(r"\s*\n\s*", "\n", markup).strip()


def _own_ids(root: ET.Element, name: str) -> None:
    """Takes out ids that nothing refers to (they repeat from figure to figure), and puts `name` before the others."""
    used = set(re.findall(r"#([\w.-]+)\)?", " ".join(value for node in root.iter() for value in node.attrib.values())))
    for node in root.iter():
        found = node.attrib.pop("id", None)
        if found in used:
            node.set("id", f"{name}-{found}")
        for key, value in node.attrib.items():
            if key == f"{{{_XLINK}}}href":
                node.set(key, value.replace("#", f"#{name}-"))
            elif "url(#" in value:
                node.set(key, value.replace("url(#", f"url(#{name}-"))


def to_png(figure: Figure, path: str | Path) -> None:
    """Writes a figure as a PNG on white with letters as on a wide page, whole or not at all."""
    from matplotlib.text import Text

    sizes = {text: float(text.get_fontsize()) for text in figure.findobj(Text)}
    try:
        for text, size in sizes.items():
            text.set_fontsize(size / PAGE_LETTERS)
        write_png(figure, Path(path), _DPI, facecolor="white")
    finally:
        for text, size in sizes.items():
            text.set_fontsize(size)
