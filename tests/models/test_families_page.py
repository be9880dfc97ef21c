"""The tables of docs/families.md are made from the family tables, and from the tests that say what they prove of a family.

Run this file as a program, with `tests` on the path, to write them anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers
from conftest import SEEING, class_name, tiny_seeing
from gguf import MODEL_ARCH_NAMES
from test_structure import OTHERS, table_model
from transformers.models.auto import modeling_auto

from hf_spectral_prune.models import families
from hf_spectral_prune.models.families import Family, family_of
from hf_spectral_prune.models.families.inside import HOLDERS
from hf_spectral_prune.publishing.export import gguf_families

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = "| family | units | uniform result | per-layer model type | GGUF |\n|---|---|---|---|---|\n"
UNITS = {
    "ffn": "FFN neurons",
    "shared_ffn": "FFN neurons of the shared expert",
    "heads": "attention heads",
    "channels": "channels",
}
HEADS_RULE = {
    "any": "stock class",
    "divides_hidden": "stock class where the head count divides the hidden size",
    "fixed": "stock class for FFN neurons alone",
}


def row(family: Family) -> str:
    also = f" ({family.also})" if family.also else ""
    if family.traced:
        units, uniform = "channels, found by tracing", ""
    else:
        grouped = any("num_key_value_heads" in kind.config_fields for kind in family.kinds)
        names = UNITS | ({"heads": "key/value groups"} if grouped else {})
        names |= {"ffn": "FFN neurons of every expert"} if family.experts is not None else {}
        names |= {"ffn": "FFN neurons of both sides"} if family.decoder else {}
        if any(kind.kind == "decoder_ffn" for kind in family.kinds):
            names |= {"ffn": "FFN neurons of the encoder", "decoder_ffn": "of the decoder"}
        units = ", ".join(dict.fromkeys(names[kind.kind] for kind in family.kinds))
        uniform = HEADS_RULE[family.stock_heads] if family.stock_ffn is None else "per-layer class"
        if isinstance(family.stock_ffn, str):
            uniform = "stock class where the hidden size divides the FFN's width"
    per_layer = f"`{family.cria}`" if family.cria else "its own class, narrowed by its config" if family.traced else "none"
    return f"| `{family.name}`{also} | {units} | {uniform} | {per_layer} | {in_gguf(family)} |\n"


def in_gguf(family: Family) -> str:
    """The architectures of llama.cpp that hold it; `test_gguf_families.py` runs every one."""
    if family.name not in gguf_families.FAMILIES:
        return "no"
    places = gguf_families.FAMILIES[family.name].architectures
    differ = [f"`{MODEL_ARCH_NAMES[place.arch]}`" for place in places if place.per_layer]
    return f"`{MODEL_ARCH_NAMES[places[0].arch]}`" + (f", per layer {differ[0]}" if differ else "")


def table() -> str:
    holders = [f"| `{name}` (its text model) | those of its text model | as its text model | none | no |\n" for name in HOLDERS]
    return HEAD + "".join(dict.fromkeys([*(row(family) for family in families.FAMILIES), *holders]))


# ---- what the tests prove


# What a test may say that it proves, in the order of the columns.
PROOFS = {
    "masked": "removed = masked",
    "parameters": "parameters",
    "heads": "task heads",
    "generate": "`generate`",
    "reload": "reload",
    "again": "second pruning",
    "bfloat16": "bfloat16",
    "shown": "without its table",
}
Row = tuple[str, str]  # what makes two families one row of the page: their name, and what else they are called


def proving() -> Iterator[tuple[Any, Any]]:
    """Every test that says what it proves, and the mark by which it does."""
    for file in sorted(PAGE.parents[1].glob("tests/**/test_*.py")):
        if "mark.proves(" in file.read_text(encoding="utf-8"):
            if str(file.parent) not in sys.path:
                sys.path.append(str(file.parent))
            for test in vars(_module(file.stem)).values():
                marks = getattr(test, "pytestmark", [])
                yield from ((test, mark) for mark in marks if mark.name == "proves")


def _module(name: str) -> ModuleType:
    return sys.modules["__main__"] if name == Path(sys.argv[0]).stem else import_module(name)


def cases(test: Any) -> list[dict[str, Any]]:
    """The values of a test's parameters, of the first parametrisation that names a family."""
    for mark in (mark for mark in test.pytestmark if mark.name == "parametrize"):
        names = [mark.args[0]] if isinstance(mark.args[0], str) else list(mark.args[0])
        if {"family", "name"} & {*names}:
            values = [getattr(value, "values", value) for value in mark.args[1]]
            tuples = [value if isinstance(value, Sequence) and not isinstance(value, str) else (value,) for value in values]
            return [dict(zip(names, value, strict=True)) for value in tuples]
    return []


@cache
def row_of_test(name: str, holds: bool = False) -> Row | None:
    """The row of the page that a row of the tests' tables is of; None where its model has no table."""
    if name == "torch":
        return name, ""
    family = family_of((tiny_seeing(name) if holds else table_model(name)).config)
    return None if family.by_structure else (family.name, family.also)


@cache
def proofs() -> Mapping[Row, Mapping[str, set[str]]]:
    """{row of the page: {what is proven: class names}}."""
    found: dict[Row, dict[str, set[str]]] = {}
    for test, mark in proving():
        given = mark.kwargs.get("of")
        assert {*mark.args} <= {*PROOFS, "unshown"}, mark
        for case in cases(test) if given is None else [{"name": name} for name in given]:
            name = case.get("family", case.get("name"))
            row = row_of_test(name, given is SEEING)
            for proof in mark.args if row else ():
                found.setdefault(row, {}).setdefault(proof, set()).add(class_name(name, case["task"]) if "task" in case else "")
    return found


def heads(family: Family, classes: set[str]) -> str:
    """How many classes of a family are tested, and of how many where transformers has more."""
    mappings = [value for name, value in vars(modeling_auto).items() if re.fullmatch(r"MODEL_\w*MAPPING_NAMES", name)]
    model_type = family.model_types[0]
    named = [mapping[model_type] for mapping in mappings if model_type in mapping]
    every = {name for value in named for name in ([value] if isinstance(value, str) else value)}
    place = type(transformers.AutoConfig.for_model(model_type)).__module__.rpartition(".")[0]
    every = {name for name in every if getattr(transformers, name).__module__.startswith(place)}
    return str(len(classes)) if every <= classes else f"{len(classes & every)} of {len(every)}"


def proofs_row(row: Row, family: Family | None) -> str:
    shown = proofs().get(row, {})
    cells = {proof: "✓" if proof in shown else "" for proof in PROOFS}
    if "heads" in shown:
        assert family is not None
        cells["heads"] = heads(family, shown["heads"])
    cells["shown"] = "found" if "shown" in shown else "refused" if "unshown" in shown else ""
    return f"| `{row[0]}`{f' ({row[1]})' if row[1] else ''} | {' | '.join(cells.values())} |\n"


def proofs_table() -> str:
    rows = {(family.name, family.also): family for family in families.FAMILIES} | {(name, ""): None for name in HOLDERS}
    head = f"| family | {' | '.join(PROOFS.values())} |\n|---|{'---|' * len(PROOFS)}\n"
    return head + "".join(proofs_row(row, family) for row, family in rows.items())


def others() -> str:
    return f"Types without a table that are tested so: {', '.join(f'`{name}`' for name in OTHERS)}.\n"


# ---- the page


def blocks() -> dict[str, str]:
    """{where each stands in the page: what must stand there}."""
    return {
        r"\| family \| units \|.*\n\|---.*\n(\|.*\n)+": table(),
        r"\| family \| removed.*\n\|---.*\n(\|.*\n)+": proofs_table(),
        r"Types without a table that are tested so: .*\n": others(),
    }


def written() -> str:
    """The page as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    for place, text in blocks().items():
        (found,) = re.finditer(place, page)
        page = page.replace(found[0], text)
    return page


def test_the_page_has_the_tables_that_the_families_and_their_tests_give():
    assert PAGE.read_text(encoding="utf-8") == written(), "run this file as a program"


def test_every_family_is_proven_to_compute_what_it_computes_masked():
    rows = {(family.name, family.also) for family in families.FAMILIES} | {(name, "") for name in HOLDERS}
    for proof in ("masked", "parameters", "again"):
        assert {row for row, shown in proofs().items() if proof in shown} == rows
    shown = {row for row, found in proofs().items() if {"shown", "unshown"} & {*found}}
    assert shown == rows - {("torch", "")}


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
