"""The notebook runs from its first cell to its last, and the site shows what it says."""

import importlib
import json

from conftest import tiny_model
from documents import ROOT
from transformers import AutoModelForCausalLM

NOTEBOOK = ROOT / "docs" / "notebooks" / "first_prune.ipynb"
PAGE = ROOT / "docs" / "first_prune.md"


def test_the_notebook_runs(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model(intermediate_size=256).save_pretrained("model")
    tokenizer.save_pretrained("model")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    programs = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum("HuggingFaceTB/SmolLM2-135M-Instruct" in program for program in programs) == 1
    names = {"__name__": "__main__"}
    for program in programs:
        program = program.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "model")
        exec(compile(program.replace("num_calibration_samples=32", "num_calibration_samples=2"), NOTEBOOK.name, "exec"), names)
    model = AutoModelForCausalLM.from_pretrained("my-first-cria")
    printed = capsys.readouterr().out
    assert str(sum(parameter.numel() for parameter in model.parameters())) in printed.split()
    assert "perplexity:" in printed and "before:" in printed and "after:" in printed


def test_no_output_is_committed_and_the_page_is_the_notebook(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    as_markdown = importlib.import_module("notebook_page").as_markdown
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert as_markdown(notebook) == PAGE.read_text(encoding="utf-8"), "python benchmarks/notebook_page.py"
