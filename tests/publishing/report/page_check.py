"""Reads a page as a browser would: balanced elements, unique ids, references that resolve, and nothing to fetch."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "hr", "img", "input", "col", "wbr", "base", "area", "embed", "source", "track"}
_LOADS = {"src", "srcset", "href", "xlink:href", "data", "action", "formaction", "poster", "background", "ping", "manifest"}


class Page(HTMLParser):
    """Elements of a page; `faults` says what is wrong with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.sections: dict[str, dict[str, str | None]] = {}
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> stays open" for tag in self._open]
        self.faults += [f"id `{name}` stands {count} times" for name, count in self.ids.items() if count > 1]
        self.faults += [f"`{name}` does not exist" for name in self.references if name not in self.ids]

    def handle_starttag(self, tag, attributes):
        self._element(tag, dict(attributes))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._element(tag, dict(attributes))
        if "svg" not in self._open:
            self.faults.append(f"<{tag}/> closes itself outside of an svg")

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, text):
        if self._open and self._open[-1] == "style":
            if re.search(r"@import|url\(", text):
                self.faults.append("the style sheet loads something")
        elif text.strip():
            self.words.append(" ".join(text.split()))

    def _element(self, tag, attributes):
        self.tags[tag] += 1
        if "id" in attributes:
            self.ids[attributes["id"]] += 1
        if tag == "section":
            self.sections[attributes["id"]] = attributes
        if tag == "svg":
            self.images.append(attributes)
        for name, value in attributes.items():
            if name.startswith("on"):
                self.faults.append(f"<{tag}> has a handler `{name}`")
            if name in _LOADS:
                if (value or "").startswith("#"):
                    self.references.append(value[1:])
                elif value != "data:,":
                    self.faults.append(f"<{tag}> loads {value!r}")
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                if target.startswith("#"):
                    self.references.append(target[1:])
                else:
                    self.faults.append(f"<{tag}> loads {target!r}")

    @property
    def text(self) -> str:
        """All its words."""
        return " ".join(self.words)
