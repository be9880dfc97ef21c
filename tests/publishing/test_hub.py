"""Pushing to the Hub and loading from it, by the real client over HTTP in processes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, logits, random_batch, tiny_encoder, tiny_model
from hub_client import Client
from hub_server import DIE, LOSE_ANSWER, REFUSE, Hub, upload_mode
from safetensors.torch import save_file

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.publishing.saved_folder import file_digests

pytestmark = pytest.mark.usefixtures("report_pages")

TOKEN, READER, STRANGER = "hf_writes0123456789", "hf_reads0123456789", "hf_stranger0123456789"
LOAD = """
import torch, transformers
from safetensors.torch import load_file
model = transformers.AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=remote).eval()
with torch.inference_mode():
    logits = model(**load_file(probe)).logits
result = [type(model).__name__, float((logits - load_file(expected)["logits"]).abs().max())]
"""

# A process of its own, for the price of none: the parent has done the imports.
FORK = """
import os, huggingface_hub
from hf_spectral_prune.cli.main import main
result = os.fork()
if result == 0:
    huggingface_hub.close_session()
    main(words)
    os._exit(0)
"""


def prune(folder: Path, tokenizer, layout: str, *, seed: int = 0) -> None:
    """A pruned folder; its self-check, which has tests of its own, is stated instead of run."""
    options = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    args = SpectralPruningArguments(output_dir=str(folder), layout=layout, self_check=False, **options)
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight += seed
    pruner = SpectralPruner(model, args, [random_batch(4, 32)], [random_batch(4, 32, 1)], tokenizer)
    pruner.prune()
    pruner.save_model()
    note_check(folder)
    save_file({"logits": logits(pruner.model, random_batch())}, folder.with_suffix(".expected"))


def note_check(folder: Path, diff: float = 0.0) -> None:
    report = json.loads((folder / "pruning_report.json").read_text())
    report["self_check"] = {"plain": {"max_abs_diff": diff, "allowed": 1e-4}}
    report["files"] = file_digests(folder)
    (folder / "pruning_report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer) -> Path:
    """Pruned folders `uniform`, `per_layer` and `another` (of another base model), and a probe for their logits."""
    place = tmp_path_factory.mktemp("made")
    prune(place / "uniform", tokenizer, "uniform")
    prune(place / "per_layer", tokenizer, "per_layer")
    prune(place / "another", tokenizer, "uniform", seed=1)
    save_file(random_batch(), place / "probe")
    return place


@pytest.fixture(scope="module")
def whole_hub():
    hub = Hub()
    hub.tokens, hub.read_only = {TOKEN: "me", READER: "me", STRANGER: "stranger"}, {READER}
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def hub(whole_hub):
    """The Hub without repos, in order again after the test."""
    whole_hub.repos.clear()
    whole_hub.blobs.clear()
    whole_hub.requests.clear()
    whole_hub.received.clear()
    yield whole_hub
    whole_hub.fault = lambda method, path: None
    if whole_hub.server is None:
        whole_hub.start()


@pytest.fixture(scope="module")
def clients(whole_hub, tmp_path_factory):
    """A process with this package and one without."""
    place = tmp_path_factory.mktemp("clients")
    both = [Client(place / name, whole_hub.url, package=name == "with_package") for name in ("with_package", "without_package")]
    # Waits between attempts take a fiftieth of their time.
    both[0].send("import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(seconds / 50)")
    yield both
    for client in both:
        client.end()


@pytest.fixture
def client(clients, made) -> Client:
    """A process with this package."""
    return clients[0]


@pytest.fixture
def bare_client(clients) -> Client:
    """A process where this package was never installed."""
    return clients[1]


def push(client: Client, folder: Path, repo_id: str = "me/cria", *more: str, token: str = TOKEN) -> tuple[int, str]:
    """`cria push` in the client's process: exit code, and what its last line said."""
    code, output = client.cria("push", str(folder), "--hub_model_id", repo_id, "--hub_token", token, *more)
    for secret in (TOKEN, READER, STRANGER):
        assert secret not in output
    return code, output.strip().splitlines()[-1]


def files_of(folder: str | Path) -> dict[str, bytes]:
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# ---- what arrives


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_push_is_one_commit_with_the_whole_folder(layout, hub, client, made):
    code, line = push(client, made / layout)
    assert code == 0, line
    files = hub.files("me/cria")
    repo = hub.repos["me/cria"]
    assert repo.messages == ["initial commit", "Upload a pruned model"]
    assert line == f"Pushed to {hub.url}/me/cria/commit/{repo.head}"
    local = files_of(made / layout)
    assert files.keys() - {".gitattributes"} == local.keys()
    assert all(files[name] == data for name, data in local.items() if name != "README.md")
    assert ("cria_llama.py" in files) == ("narrowing.py" in files) == (layout == "per_layer")
    auto_map = json.loads(files["config.json"]).get("auto_map", {})
    assert ({"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= auto_map.keys()) == (layout == "per_layer")
    # Both ways of sending were used: by LFS for what the Hub wants so, inside the commit for the rest.
    by_lfs = [name for name in local if upload_mode(name) == "lfs"]
    assert {"model.safetensors", "tokenizer.json", "plots/widths.png"} <= set(by_lfs)
    assert len(hub.received) == len(by_lfs) < len(local)
    assert 'from_pretrained("me/cria"' in files["README.md"].decode()
    assert f"# {layout}" in local["README.md"].decode(), "the folder's own card still has the folder's name"

    requests = len(hub.requests)
    code, _ = push(client, made / layout)
    assert code == 0
    assert len(repo.commits) == 2, "nothing has changed, so nothing is committed"
    assert not [request for request in hub.requests[requests:] if request.startswith("PUT")]


def test_models_load_from_the_hub(hub, client, bare_client, made, tmp_path):
    for layout in ("uniform", "per_layer"):
        assert push(client, made / layout, f"me/{layout}")[0] == 0
    values = {"probe": str(made / "probe")}
    plain = {**values, "repo": "me/uniform", "expected": str(made / "uniform.expected"), "remote": False}
    cria = {**values, "repo": "me/per_layer", "expected": str(made / "per_layer.expected")}
    assert bare_client.run(LOAD, **plain) == ["LlamaForCausalLM", 0.0]
    assert bare_client.run(LOAD, **cria, remote=True) == ["CriaLlamaForCausalLM", 0.0]
    assert client.run(LOAD, **cria, remote=False) == ["CriaLlamaForCausalLM", 0.0]
    assert not bare_client.run("import sys\nresult = [name for name in sys.modules if name.startswith('hf_spectral_prune')]")

    there = bare_client.run("import huggingface_hub\nresult = huggingface_hub.snapshot_download('me/per_layer')")
    assert files_of(there) == hub.files("me/per_layer")
    card = "import huggingface_hub\ndata = huggingface_hub.ModelCard.load('me/uniform').data\n"

    for layout in ("uniform", "per_layer"):
        *remote, plain = re.findall(r"```python\n(.*?)```", hub.files(f"me/{layout}")["README.md"].decode(), flags=re.DOTALL)
        for there, program in [(bare_client, block) for block in remote] + [(client if remote else bare_client, plain)]:
            name = "CriaLlamaForCausalLM" if remote else "LlamaForCausalLM"
            assert there.run(f"{program}\nresult = [type(model).__name__, len(tokenizer)]") == [name, VOCABULARY]

    tags, results = bare_client.run(f"{card}result = [data.tags, [[r.metric_name, r.metric_value] for r in data.eval_results]]")
    assert {"cria", "pruned"} <= set(tags)
    report = json.loads((made / "uniform" / "pruning_report.json").read_text())
    assert ["perplexity, after pruning", report["metrics_after"]["after_perplexity"]] in results


def test_only_what_saving_writes_is_pushed(hub, client, made, tmp_path):
    folder = shutil.copytree(made / "uniform", tmp_path / "folder")
    report = json.loads((folder / "pruning_report.json").read_text())
    report["written"] += ["1_Pooling/config.json", "2_Dense/own.json", ".netrc", "2_Dense/pytorch_model.bin"]
    (folder / "pruning_report.json").write_text(json.dumps(report))
    sent = {"plots/more.png", "1_Pooling/config.json", "2_Dense/own.json", "chat_template.jinja", "LICENSE", "model-f16.gguf"}
    kept = {".env", ".netrc", ".cache/token", "runs/events", "checkpoint-1/pruning_plan.json", "training_args.bin", "x.tmp"}
    kept |= {"model.pkl", "optimizer.pt", "2_Dense/pytorch_model.bin", "__pycache__/cria_llama.cpython-311.pyc"}
    named = {"notes.txt", "train.jsonl", "data/train.parquet", "credentials.json", "wandb/config.json"}
    (tmp_path / "secret").write_text("a token")
    for name in sent | kept | named:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "id_rsa").symlink_to(tmp_path / "secret")
    (folder / "more").symlink_to(tmp_path)
    code, output = client.cria("push", str(folder), "--hub_model_id", "me/cria", "--hub_token", TOKEN)
    assert code == 0, output
    assert hub.files("me/cria").keys() - files_of(made / "uniform").keys() == {".gitattributes"} | sent
    assert "Left behind, as no file of a saved model: `credentials.json`, `id_rsa`, `notes.txt` and 4 more." in output


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md", "plots", "model.safetensors"])
def test_no_link_out_of_the_folder_is_followed(name, hub, client, made, tmp_path):
    folder = shutil.copytree(made / "uniform", tmp_path / "folder")
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    code, line = push(client, folder)
    assert code == 2 and f"`{folder / name}` is a link out of the folder" in line
    assert not hub.requests


def test_text_that_stands_in_the_repo_is_kept(hub, client, made, tmp_path):
    hub.make("me/cria", {"README.md": b"---\nlicense: mit\ntags:\n- mine\n---\n# My model\n\nHow I came to it.\n"})
    assert push(client, made / "uniform")[0] == 0
    card = hub.files("me/cria")["README.md"].decode()
    assert "license: mit\n" in card
    assert card.index("- mine\n") < card.index("- cria\n")
    assert "# My model\n\nHow I came to it.\n" in card
    assert "# cria\n" not in card, "there is a title already"
    assert push(client, made / "uniform")[0] == 0
    assert hub.files("me/cria")["README.md"].decode() == card

    folder = shutil.copytree(made / "uniform", tmp_path / "folder")
    (folder / "README.md").write_text("Another story.\n")
    code, line = push(client, folder)
    assert code == 2
    assert "both have text of their own" in line
    assert push(client, folder, "me/cria", "--overwrite")[0] == 0
    assert "Another story." in hub.files("me/cria")["README.md"].decode()


def test_update_takes_away_what_would_be_loaded_beside_it(hub, client, made):
    plan = (made / "uniform" / "pruning_plan.json").read_bytes()
    shards = {
        "model-00001-of-00002.safetensors": b"1",
        "model.safetensors.index.json": b"{}",
        "cria_llama.py": b"",
        "mine.txt": b"m",
    }
    hub.make("me/cria", {"pruning_plan.json": plan, **shards})
    assert push(client, made / "uniform")[0] == 0
    files = hub.files("me/cria")
    assert not {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "cria_llama.py"} & files.keys()
    assert files["mine.txt"] == b"m"
    assert len(hub.repos["me/cria"].commits) == 2


# ---- what is refused


@pytest.mark.parametrize(
    ("token", "repo_id", "words"),
    [
        ("hf_wrong0123456789", "me/cria", ["refused the token (401)", "hf auth login"]),
        (READER, "me/cria", ["may not write to `me/cria` (403)"]),
        (TOKEN, "stranger/cria", ["may not write to `stranger/cria` (403)"]),
        (STRANGER, "me/there", ["may not write to `me/there` (403)"]),
    ],
    ids=["wrong token", "read-only token", "someone else's name", "someone else's repo"],
)
def test_refused_token_is_one_line_without_it(token, repo_id, words, hub, client, made):
    hub.make("me/there")
    code, line = push(client, made / "uniform", repo_id, token=token)
    assert code == 2
    assert line.startswith("cria push: ")
    assert token not in client.output.read_text()
    for word in words:
        assert word in line
    assert list(hub.repos) == ["me/there"]


def test_no_token_no_network_and_offline_are_told(hub, client, made):
    code, output = client.cria("push", made / "uniform", "--hub_model_id", "me/cria")
    assert code == 2
    assert "There is no token for the Hub" in output
    client.run("import huggingface_hub.constants as c\nc.HF_HUB_OFFLINE = True")
    assert "`HF_HUB_OFFLINE` is set" in push(client, made / "uniform")[1]
    client.run("import huggingface_hub.constants as c\nc.HF_HUB_OFFLINE = False")
    hub.stop()
    code, line = push(client, made / "uniform")
    assert code == 2
    assert f"{hub.url} cannot be reached" in line


def test_public_repo_is_refused_where_a_private_one_is_asked_for(hub, client, made):
    hub.make("me/public")
    code, line = push(client, made / "uniform", "me/public", "--hub_private_repo")
    assert code == 2
    assert "`me/public` exists and is public" in line
    assert push(client, made / "uniform", "me/new", "--hub_private_repo")[0] == 0
    assert hub.repos["me/new"].private
    assert len(hub.repos["me/public"].commits) == 1


def test_repo_with_another_model_is_refused_and_replaced_on_demand(hub, client, made):
    foreign = {"config.json": b"{}", "pytorch_model.bin": b"w", "tokenizer.model": b"t", "README.md": b"# Other\n\nOld text.\n"}
    hub.make("me/foreign", foreign)
    code, line = push(client, made / "uniform", "me/foreign")
    assert code == 2
    assert "holds another model (a model without a `pruning_plan.json`)" in line
    assert "--overwrite" in line
    assert push(client, made / "another", "me/cria")[0] == 0
    code, line = push(client, made / "uniform", "me/cria")
    assert code == 2
    assert "a model that was pruned from other weights" in line
    assert not [request for request in hub.requests if "preupload" in request and "foreign" in request], "nothing was sent"

    for name in ("me/foreign", "me/cria"):
        assert push(client, made / "uniform", name, "--overwrite")[0] == 0
        files = hub.files(name)
        assert files.keys() - {".gitattributes"} == files_of(made / "uniform").keys()
        assert files["model.safetensors"] == (made / "uniform" / "model.safetensors").read_bytes()
    assert b"Old text" not in hub.files("me/foreign")["README.md"]


# ---- failures on the way


def after_first_upload(hub: Hub, then: Callable[[], str | None]) -> Callable[[str, str], str | None]:
    """A fault for every upload but the first, as soon as that has arrived."""
    uploads: list[str] = []
    guard = threading.Lock()

    def fault(method: str, path: str) -> str | None:
        if method != "PUT":
            return None
        with guard:
            uploads.append(path)
            if len(uploads) == 1:
                return None
        while not hub.received:
            time.sleep(0.01)
        with guard:
            return REFUSE if hub.server is None else then()

    return fault


def test_server_that_dies_in_the_middle_and_comes_back(hub, client, made):
    deaths = []

    def die_once() -> str | None:
        if not deaths:
            deaths.append(len(hub.received))
            threading.Timer(0.3, hub.start).start()
            return DIE
        return None

    hub.fault = after_first_upload(hub, die_once)
    client.run("time = __import__('time')\ntime.sleep = lambda s, old=time.sleep: old(s * 25)")
    code, line = push(client, made / "uniform")
    client.run("time = __import__('time')\ntime.sleep = lambda s, old=time.sleep: old(s / 25)")
    assert code == 0, line
    assert 0 < deaths[0] < len(hub.received)
    assert len(hub.received) == len(set(hub.received)), "what had arrived is not sent again"
    assert len(hub.repos["me/cria"].commits) == 2


def test_server_that_does_not_come_back_is_told_and_the_next_push_goes_on(hub, client, made):
    hub.fault = after_first_upload(hub, lambda: DIE)
    code, line = push(client, made / "uniform")
    assert code == 2
    assert "broke off 4 times" in line
    assert f"cria push {made / 'uniform'} --hub_model_id me/cria" in line
    assert len(hub.repos["me/cria"].commits) == 1, "no half commit"
    assert hub.received
    hub.fault = lambda method, path: None
    hub.start()
    assert push(client, made / "uniform")[0] == 0
    assert len(hub.received) == len(set(hub.received)), "what had arrived is not sent again"
    assert len(hub.repos["me/cria"].commits) == 2


@pytest.mark.parametrize("fault", [REFUSE, LOSE_ANSWER])
def test_commit_whose_connection_drops_is_made_once(fault, hub, client, made):
    def at_first_commit(method, path):
        commits = [request for request in hub.requests if request.endswith("/commit/main")]
        return fault if path.endswith("/commit/main") and len(commits) == 1 else None

    hub.fault = at_first_commit
    code, line = push(client, made / "uniform")
    assert code == 0, line
    assert hub.repos["me/cria"].messages == ["initial commit", "Upload a pruned model"]
    assert hub.files("me/cria")["config.json"] == (made / "uniform" / "config.json").read_bytes()


def test_commit_of_someone_else_in_between_is_not_overwritten(hub, client, made):
    def commit_first(method, path):
        if path.endswith("/commit/main") and len(hub.repos["me/cria"].commits) == 1:
            other = (made / "another" / "pruning_plan.json").read_bytes()
            hub.repos["me/cria"].add({"pruning_plan.json": hub.keep(other)}, "by someone else")
        return None

    hub.fault = commit_first
    code, line = push(client, made / "uniform")
    assert code == 2
    assert "holds another model" in line
    assert hub.repos["me/cria"].messages == ["initial commit", "by someone else"]


def test_pusher_that_is_killed_goes_on_where_it_was(hub, client, made):
    waiting, killed = threading.Event(), threading.Event()

    def hang() -> str:
        waiting.set()
        killed.wait(60)
        return REFUSE

    hub.fault = after_first_upload(hub, hang)
    words = ["push", str(made / "uniform"), "--hub_model_id", "me/cria", "--hub_token", TOKEN]
    doomed = client.run(FORK, words=words)
    assert waiting.wait(60)
    os.kill(doomed, signal.SIGKILL)
    killed.set()
    assert len(hub.received) == 1
    hub.fault = lambda method, path: None
    assert push(client, made / "uniform")[0] == 0
    assert len(hub.received) == len(set(hub.received)) > 1
    assert len(hub.repos["me/cria"].commits) == 2


# ---- pruning and pushing in one command


def test_prune_with_push_to_hub(hub, client, tokenizer, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = torch.randint(3, VOCABULARY, (2_000,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "text.txt").write_text(" ".join(f"w{word}" for word in words.tolist()))
    (tmp_path / "recipe.yaml").write_text(
        f"model_name_or_path: {tmp_path / 'model'}\ncalibration_file: {tmp_path / 'text.txt'}\noutput_dir: {tmp_path / 'out'}\n"
        "target_scope: prunable\nround_to: 4\nmin_ffn_units: 4\nmax_seq_length: 32\nnum_calibration_samples: 8\n"
        "num_eval_samples: 4\npush_to_hub: true\nreport_to: [none]\n"
    )

    def prune_and_push(repo_id: str, token: str) -> tuple[int, str]:
        flags = ["--hub_model_id", repo_id, "--hub_token", token, "--hub_private_repo"]
        return client.cria("prune", str(tmp_path / "recipe.yaml"), *flags)

    hub.make("me/foreign", {"config.json": b"{}"}, private=True)
    for repo_id, token, message in (
        ("me/cria", "hf_wrong0123456789", "refused the token"),
        ("me/cria", READER, "may not write"),
        ("me/foreign", TOKEN, "holds another model"),
    ):
        code, output = prune_and_push(repo_id, token)
        assert code == 2
        assert message in output
        assert not (tmp_path / "out").exists(), "told before any work"
        assert "Calibrating" not in output

    code, output = prune_and_push("me/cria", TOKEN)
    assert code == 0, output
    files = hub.files("me/cria")
    assert hub.repos["me/cria"].private
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    report = json.loads(files["pruning_report.json"])
    assert report["arguments"]["hub_token"] == "<HUB_TOKEN>"
    assert report["self_check"]["plain"]["max_abs_diff"] <= report["self_check"]["plain"]["allowed"]
    assert b"# me/cria\n" in files["README.md"]
    written = [path for place in (tmp_path, client.place) for path in place.rglob("*") if path.is_file()]
    assert client.output in written and tmp_path / "out" / "pruner_state.json" in written
    for path in written:
        assert TOKEN.encode() not in path.read_bytes(), path


def test_failed_push_leaves_the_saved_folder_and_says_so(hub, client, tokenizer, made, tmp_path):
    source = """
from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from transformers import AutoModelForCausalLM
import torch
model = AutoModelForCausalLM.from_pretrained(base)
args = SpectralPruningArguments(
    output_dir=out, units=["ffn"], target_scope="prunable", round_to=4, min_ffn_units=4, criterion="magnitude", disable_tqdm=True,
    target_reduction=0.5, self_check=False, push_to_hub=True, hub_model_id="me/cria", hub_token=token,
)
pruner = SpectralPruner(model, args)
pruner.prune()
try:
    pruner.save_model()
except OSError as error:
    result = str(error)
"""
    message = client.run(source, base=str(made / "uniform"), out=str(tmp_path / "out"), token=TOKEN)
    assert "was never self-checked" in message
    assert f"The model itself is saved in `{tmp_path / 'out'}`." in message
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert hub.repos["me/cria"].messages == ["initial commit"]


# ---- what a model of the Hub has beside it


def test_a_model_of_the_hub_brings_its_other_files(hub, client, tokenizer, tmp_path):
    """Those that loading has no use for are fetched for it; weights in other formats are not."""
    source, out = tmp_path / "bge", tmp_path / "out"
    tiny_encoder(task="Model").save_pretrained(source)
    tokenizer.save_pretrained(source)
    modules = [{"idx": index, "path": path, "type": "a.Module"} for index, path in enumerate(["", "1_Pooling", "2_Normalize"])]
    carried = {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b'{"pooling_mode": "cls"}',
        "config_sentence_transformers.json": b"{}",
        "sentence_bert_config.json": b'{"max_seq_length": 64}',
        "LICENSE": b"terms",
    }
    others = {"README.md": b"---\nlicense: mit\n---\n", "pytorch_model.bin": b"x", "onnx/model.onnx": b"x", "notes.txt": b"x"}
    hub.make("me/bge", files_of(source) | carried | others)
    words = ["prune", "me/bge", "--output_dir", str(out), "--criterion", "magnitude", "--compensation", "none"]
    words += ["--allocation", "proportional", "--target_reduction", "0.1", "--round_to", "4", "--self_check", "False"]
    code, said = client.cria(*words)
    assert code == 0, said[-2000:]
    assert {name: (out / name).read_bytes() for name in carried} == carried
    assert (out / "2_Normalize").is_dir()  # a module without files
    assert not [name for name in others if name != "README.md" and (out / name).exists()]
    assert "Not carried over from `me/bge`, as no file that is known: `notes.txt`." in said
    assert not [request for request in hub.requests if request.endswith((".bin", ".onnx")) and request.startswith("GET")]
    assert set(carried) <= set(json.loads((out / "pruning_report.json").read_text())["written"])
