"""The API reference names every public name, and nothing else."""

import re
from pathlib import Path

import hf_spectral_prune

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_api_page_has_every_public_name():
    listed = re.findall(r"^::: (hf_spectral_prune[\w.]+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {name.rpartition(".")[2] for name in listed} == set(hf_spectral_prune.__all__) - {"__version__", "CRITERIA"}
    assert len(listed) == len(set(listed))
