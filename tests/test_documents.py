"""The programs of the README and of the pages in docs/ run as printed, and their commands and files exist."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml
from conftest import tiny_encoder, tiny_model, tiny_seq2seq
from crias import BPE_VOCABULARY, TASK, byte_level, cria, save
from documents import DOCUMENTS, ROOT, blocks, commands, read_flags
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification
from vision import image_folder, processor_of, tiny_vision

from hf_spectral_prune.arguments import SpectralPruningArguments
from hf_spectral_prune.cli.arguments import RunArguments
from hf_spectral_prune.cli.prune import OffloadArguments, PresetArguments
from hf_spectral_prune.criteria import CRITERIA
from hf_spectral_prune.models import families

README = ROOT / "README.md"
PROGRAMS = [(document.name, index) for document in DOCUMENTS for index in range(len(blocks(document, "python")))]
FAMILY = ("extend.md", 1)  # which has a test of its own
PROGRAMS.remove(FAMILY)
# Those that are left to `make test-slow`; what the README shows is never among them.
LONG_PROGRAMS = [(page, index) for page in ("deploy.md", "publish.md", "differentiation.md", "trainer.md") for index in range(4)]
# Folders that the programs write, and what loads them.
RESULTS = {
    "cria": AutoModelForCausalLM,
    "cria-recovered": AutoModelForCausalLM,
    "bert-pruned": AutoModelForSequenceClassification,
    "cria-resnet": AutoModelForImageClassification,
}
COMMAND_LINES = [(document.name, *line) for document in DOCUMENTS for line in commands(document)]


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory, tokenizer):
    """A folder with the models that the programs name."""
    place = tmp_path_factory.mktemp("documents")
    tiny_model(intermediate_size=256).save_pretrained(place / "llama")
    tiny_encoder("bert", intermediate_size=256).save_pretrained(place / "bert")
    tiny_vision("resnet-basic", embedding_size=16, hidden_sizes=[16, 32]).save_pretrained(place / "resnet")
    tiny_vision("vit", intermediate_size=256).save_pretrained(place / "vit")
    processor_of("resnet-basic").save_pretrained(place / "resnet")
    processor_of("vit").save_pretrained(place / "vit")
    image_folder(place / "images")
    tiny_seq2seq("bart", encoder_ffn_dim=256, decoder_ffn_dim=256).save_pretrained(place / "bart")
    for name in ("llama", "bert", "bart"):
        tokenizer.save_pretrained(place / name)
    for program in (text for document in DOCUMENTS for text in blocks(document, "python")):
        if name := re.match(r"# (\w+\.py)\n", program):  # the file of a module that another program imports
            (place / name[1]).write_text(program, encoding="utf-8")
    return place


@pytest.fixture
def models(saved_models, tmp_path, monkeypatch):
    """A working folder with a copy of them."""
    shutil.copytree(saved_models, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    known = dict(CRITERIA)
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)  # what a program adds goes again
    yield tmp_path
    CRITERIA.clear()
    CRITERIA.update(known)


# Folders that some programs start from, made only for those.
PREPARED = {
    "path/to/cria": lambda folder, _: save(folder, cria(tiny_model(vocab_size=BPE_VOCABULARY)), byte_level()),
    "path/to/cria-encoder": lambda folder, tokenizer: save(folder, cria(tiny_encoder(task="Model")), tokenizer),
    "path/to/tasks": lambda folder, _: write_task(folder),
}
CLIENTS = ("bitsandbytes", "lm_eval", "onnxruntime", "sentence_transformers", "xllamacpp")


def write_task(folder) -> None:
    """A task of multiple choice for lm_eval, `my_task`."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"question": "The quick", "choices": ["brown", "lazy"], "label": 0}\n' * 4)
    task = TASK.format(rows=folder / "rows.jsonl").replace("cria_pairs", "my_task")
    (folder / "my_task.yaml").write_text(task)


@pytest.mark.parametrize(
    ("name", "index"),
    [pytest.param(*program, marks=pytest.mark.slow if program in LONG_PROGRAMS else ()) for program in PROGRAMS],
)
def test_programs_run_and_leave_folders_that_load(name, index, models, tokenizer, monkeypatch):
    (document,) = [document for document in DOCUMENTS if document.name == name and len(blocks(document, "python")) > index]
    program = blocks(document, "python")[index]
    for client in CLIENTS:
        if re.search(rf"^(from|import) {client}\b", program, flags=re.MULTILINE):
            pytest.importorskip(client)
    for path, prepare in PREPARED.items():
        if f'"{path}"' in program:
            prepare(models / path.removeprefix("path/to/"), tokenizer)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    exec(compile(program.replace("path/to/", ""), name, "exec"), {"__name__": "__main__"})
    for folder in RESULTS.keys() & {path.name for path in models.iterdir()}:
        RESULTS[folder].from_pretrained(models / folder)


def test_family_of_ones_own_takes_thirty_lines_and_loses_heads_too(models):
    program = blocks(ROOT / "docs" / FAMILY[0], "python")[FAMILY[1]]
    assert len([line for line in program.splitlines() if line.strip()]) <= 30
    exec(compile(program, FAMILY[0], "exec"), {"__name__": "__main__"})
    model = AutoModelForCausalLM.from_pretrained(models / "arcee-pruned")
    assert type(model).__name__ == "ArceeForCausalLM"
    assert model.config.intermediate_size < 256 and model.config.num_key_value_heads < 4


@pytest.mark.parametrize(("name", "command", "words"), COMMAND_LINES)
def test_commands_and_their_flags_exist(name, command, words, monkeypatch):
    read_flags(command, words, monkeypatch)


def test_recipes_on_the_pages_have_known_keys():
    recipes = [yaml.safe_load(text) for document in DOCUMENTS for text in blocks(document, "yaml")]
    known = {*SpectralPruningArguments.__dataclass_fields__, *RunArguments.__dataclass_fields__}
    assert recipes
    assert all(set(recipe) <= known for recipe in recipes)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files(document):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_options_in_the_table_exist():
    rows = [row for row in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8").splitlines() if row.startswith("|")]
    flags = {flag for row in rows for flag in re.findall(r"`--(\w+)", row)}
    assert flags
    kinds = (SpectralPruningArguments, RunArguments, OffloadArguments, PresetArguments)
    assert flags <= {name for kind in kinds for name in kind.__dataclass_fields__}


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160


def test_scripts_that_the_pages_name_exist():
    named = re.findall(r"`(\w+\.py)`", (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8"))
    assert named
    assert all((ROOT / "benchmarks" / name).is_file() for name in named)
