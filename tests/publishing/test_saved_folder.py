"""What is refused before the Hub is asked: folders that are not whole or were changed by hand, repos that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_spectral_prune import SpectralPruningArguments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.publishing import check_fit_to_publish, file_digests, read_folder
from hf_spectral_prune.publishing.hub import files_to_push

HERE = Path(__file__).parent
ID = ["--hub_model_id", "me/cria"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder that is fit to publish; its weights are two tensors."""
    path = Path(shutil.copytree(HERE / "folder", tmp_path / "cria"))
    save_file({"a": torch.zeros(4), "b": torch.ones(4)}, path / "model.safetensors")
    for name in ("cria_llama.py", "narrowing.py"):
        (path / name).write_text("# code\n")
    note(path, files=file_digests(path))
    check_fit_to_publish(read_folder(path))
    return path


def note(folder: Path, **figures) -> None:
    file = folder / "pruning_report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | figures))


def edit_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))


def edit_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["a"][2] = 1e-6
    save_file(weights, folder / "model.safetensors")


def leave_code_out(folder: Path) -> None:
    (folder / "narrowing.py").unlink()
    (folder / "cria_llama.py").unlink()
    note(folder, files=file_digests(folder))


def fail_self_check(folder: Path, diff: float) -> None:
    note(folder, self_check={"plain": {"max_abs_diff": diff, "allowed": 1e-4}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit_config, "`{folder}/config.json` is not the file that the self-check read"),
        (edit_weights, "`{folder}/model.safetensors` is not the file that the self-check read"),
        (lambda folder: (folder / "narrowing.py").write_text("# other\n"), "`{folder}/narrowing.py` is not the file"),
        (lambda folder: shutil.copy(folder / "model.safetensors", folder / "more.safetensors"), "`{folder}/more.safetensors` is"),
        (lambda folder: (folder / "extra.py").touch(), "`{folder}/extra.py` is not the file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "`{folder}/model.safetensors` is gone"),
        (leave_code_out, "`{folder}/cria_llama.py` is missing, which `auto_map`"),
        (lambda folder: note(folder, self_check=None), "was never self-checked"),
        (lambda folder: fail_self_check(folder, 0.5), "failed its self-check (plain: outputs differ by 0.5)"),
        (lambda folder: fail_self_check(folder, float("nan")), "failed its self-check (plain: outputs differ by nan)"),
        (lambda folder: note(folder, files=None), "no digests of the checked files"),
        (lambda folder: note(folder, layout=None), "no figure `layout`"),
        (lambda folder: (folder / "config.json").write_text("{"), "`{folder}/config.json` is not JSON"),
        (lambda folder: (folder / "pruning_report.json").write_text("[]"), "does not hold a JSON object"),
        (lambda folder: (folder / "pruning_report.json").unlink(), "has no `pruning_report.json`"),
        (lambda folder: (folder / "pruning_plan.json").unlink(), "has no `pruning_plan.json`"),
        (lambda folder: (folder / "README.md").write_text("---\n: [\n---\n"), "metadata of `{folder}/README.md`"),
    ],
)
def test_folder_that_is_not_whole_is_one_line_and_exit_2(change, words, folder, capsys):
    change(folder)
    assert main(["push", str(folder), *ID, "--hub_token", "hf_0123456789"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("cria push: ")
    assert words.format(folder=folder) in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "There is no folder"),
        (ID, "There is no folder"),
        (["/nowhere", *ID], "`/nowhere` is not a folder"),
        (["{folder}"], "Set `hub_model_id`"),
        (["{folder}", "--hub_model_id", "a/b/c"], "`a/b/c` cannot be a repo"),
        (["{folder}", "--hub_model_id", "me/-cria-"], "`me/-cria-` cannot be a repo"),
        (["{folder}", "--hub_model_id", "me/cr ia"], "`me/cr ia` cannot be a repo"),
        (["{folder}", "--hub_modl_id", "me/cria"], "`--hub_model_id`"),
        (["{folder}", *ID, "--hub_token", "hf_0123456789"], "`HF_HUB_OFFLINE` is set"),
    ],
)
def test_bad_flags_of_push_are_one_line_and_exit_2(words, message, folder, capsys):
    assert main(["push", *(word.format(folder=folder) for word in words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_files_to_push_leave_private_ones_and_pickles_behind(folder):
    saved = read_folder(folder)
    before = files_to_push(saved)
    for name in (
        ".env",
        ".cache/x",
        "runs/e",
        "checkpoint-2/x.json",
        "optimizer.pt",
        "a.partial",
        "notes.txt",
        "1_Pooling/own.json",
        "1_Pooling/config.json",
        "plots/w.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert set(files_to_push(saved)) - set(before) == {folder / "plots/w.png", folder / "1_Pooling/config.json"}
    saved.report.written = ["1_Pooling/own.json", "optimizer.pt", ".env"]
    assert folder / "1_Pooling/own.json" in files_to_push(saved)
    assert not {folder / "optimizer.pt", folder / ".env"} & set(files_to_push(saved))


def test_token_shows_in_nothing_that_is_written():
    secret = "hf_secret0123456789"
    args = SpectralPruningArguments(hub_token=secret, training_args={"max_steps": 1, "hub_token": secret})
    assert args.hub_token == secret
    assert args.to_dict()["hub_token"] == "<HUB_TOKEN>"
    assert args.to_dict()["training_args"] == {"max_steps": 1, "hub_token": "<HUB_TOKEN>"}
    for text in (repr(SpectralPruningArguments(hub_token=secret)), args.to_json_string(), str(args.to_sanitized_dict())):
        assert secret not in text
    assert SpectralPruningArguments().to_dict()["hub_token"] is None


def test_recipe_that_is_not_yaml_does_not_show_its_token(folder, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("overwrite: true\nhub_token: hf_secret0123456789: x\n")
    assert main(["push", str(folder), str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert "cannot be read: line 2" in error
    assert "secret" not in error


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join([f'*{chr(97 + level)}'] * 10)}]\n" for level in range(9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 2: the alias `*a` is not taken"),
        (f"criterion_args: {{a: {'[' * 40}{']' * 40}}}", "more than 30 levels"),
        ("seed: 1\nlayout: uniform\nseed: 2", "line 3: the key `seed` stands there twice"),
        (f"seed: {'9' * 5000}", "Exceeds the limit"),
        ("seed: 2020-13-45", "month must be in 1..12"),
        (f"# {'x' * 2**20}", "1.0 MB"),
        (f"seed: [{', '.join(['1'] * 10_000)}]", "`seed` is a list"),
        (b"\xff\xfe", "not UTF-8 (byte 0)"),
    ],
)
def test_recipes_are_read_within_bounds(text, words, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["prune", str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error) < 400 and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(("given", "missing"), [({"output_dir": "x"}, "hub_model_id"), ({"hub_model_id": "a/b"}, "output_dir")])
def test_push_to_hub_needs_a_repo_and_a_folder(given, missing):
    with pytest.raises(ValueError, match=f"`push_to_hub` is set, but `{missing}` is not"):
        SpectralPruningArguments(push_to_hub=True, **given)
