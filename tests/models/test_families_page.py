"""The table of docs/families.md is made from the family tables; run this file as a program to write it anew."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import ENCODERS, FAMILIES, FFN_ONLY, MOE, SEEING, SEQ2SEQ
from gguf import MODEL_ARCH_NAMES
from test_structure import TOWERS
from vision import VISION

from hf_spectral_prune.models import families
from hf_spectral_prune.models.families import Family
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


def written(page: str) -> re.Match[str]:
    found = re.search(r"\| family \|.*\n\|---.*\n(\|.*\n)+", page)
    assert found is not None
    return found


def test_the_page_has_the_table_that_the_families_give():
    assert written(PAGE.read_text(encoding="utf-8"))[0] == table(), "run this file as a program"


TABLES = {family.name for family in families.FAMILIES}
SIDES = {"siglip_text_model"}  # no model of its own: cut inside a whole one in test_structure.py


def _short(name: str) -> str:
    return name.split("-")[0].replace("_text", "")


def test_every_family_is_in_the_tables_of_the_tests():
    tested = {*FAMILIES, *FFN_ONLY, *MOE, *SEQ2SEQ, *ENCODERS, *VISION, *TOWERS.keys() & TABLES, *SIDES}
    names = {family.name for family in families.FAMILIES if not family.inside and family.name != "torch"}
    assert {_short(name) for name in names} == {_short(name) for name in tested}
    assert {*HOLDERS, *(family.name for family in families.FAMILIES if family.inside)} == {*SEEING}


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(written(page)[0], table()), encoding="utf-8")
