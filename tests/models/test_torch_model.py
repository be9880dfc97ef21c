"""Plain PyTorch networks are pruned as models are: exact cuts, exact budgets, a folder that loads anywhere, and clear errors."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import refused
from networks import NETWORKS, Grouped, Mlp, Residual, Sized, Vgg, input_batch, tiny_network, wrapped
from products import only
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune
from vision import randomise

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.cria.channels import cria_class, widths_of
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning import budget_of, choose_units
from hf_spectral_prune.planning.flops import layer_macs
from hf_spectral_prune.surgery import apply_plan, masked
from hf_spectral_prune.surgery.plan import PruningPlan

TESTS = Path(__file__).parent.parent


def random_plan(model, seed: int = 0) -> PruningPlan:
    """Keeps a random part of every group, of a different size for each; at least one unit goes and one stays."""
    generator = torch.Generator().manual_seed(seed)
    groups = unit_groups(model)
    shares = torch.rand(len(groups), generator=generator) / 2 + 0.4
    sizes = {group.key: min(group.size - 1, max(1, int(group.size * share))) for group, share in zip(groups, shares, strict=True)}
    scores = {group.key: torch.rand(group.size, generator=generator) for group in groups}
    count = budget_of(model, groups).parameters
    return choose_units(groups, scores, sizes, num_parameters(model), count, model_type=model.config.model_type)


def pruner_of(network: nn.Module, data=None, **fields) -> SpectralPruner:
    options = {"units": ["channels"], "criterion": "energy", "target_scope": "prunable", "target_reduction": 0.4}
    options |= {"round_to": 1, "min_channels": 2, "disable_tqdm": True}
    data = [input_batch(network, seed=seed) for seed in (0, 1)] if data is None else data
    return SpectralPruner(network, SpectralPruningArguments(**options | fields), data)


@torch.no_grad()
def outputs(network: nn.Module, name: str) -> torch.Tensor:
    return network.eval()(input_batch(name, 4)["pixel_values"])


@pytest.mark.proves("masked", of=["torch"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_removed_network_equals_masked_network(name, seed):
    model = wrapped(name).double()
    pixels = input_batch(name)["pixel_values"].double()
    dense = model(pixels).logits.detach()
    plan = random_plan(model, seed)
    with masked(model, {key: plan.kept_index(key) for key in plan.kept}):
        expected = model(pixels).logits.detach()
    apply_plan(model, plan)
    assert torch.allclose(model(pixels).logits, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert float((dense - expected).abs().max()) > 0.01  # else masking did nothing, and this shows nothing


@pytest.mark.proves("parameters", of=["torch"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_planned_parameters_and_macs_are_those_of_the_cut_network(name, seed):
    model, batch = wrapped(name), input_batch(name)
    plan = random_plan(model, seed)
    sizes = {key: len(kept) for key, kept in plan.kept.items()}
    budget = budget_of(model, unit_groups(model), layer_macs(model, batch))
    apply_plan(model, plan)
    assert budget.parameters(sizes) == plan.parameters_after == sum(value.numel() for value in model.network.parameters())
    assert budget.macs(sizes) == sum(layer_macs(model, batch).values())


@pytest.mark.parametrize("scope", ["all", "flops"])
@pytest.mark.parametrize("name", NETWORKS)
def test_pruner_takes_a_plain_network_and_meets_its_target(name, scope):
    network = tiny_network(name)
    before = num_parameters(network)
    pruner = pruner_of(network, target_scope=scope, target_reduction=0.3, layout="per_layer", allocation="scores")
    output = pruner.prune()
    assert output.model is network
    assert outputs(network, name).shape == (4, 4)
    macs = output.report["macs"]
    counts = (before, num_parameters(network)) if scope == "all" else (macs["before"], macs["after"])
    assert counts[0] - int(0.3 * counts[0]) <= counts[1] < 0.85 * counts[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_hidden_layer_can_lose_units(name):
    """What flows into the output stays; everything else is offered, concatenated and flattened channels too."""
    model = wrapped(name)
    made = {piece.path for group in unit_groups(model) for piece in group.slices if piece.side == "output"}
    layers = [path for path, module in model.network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    last = "layers.4" if name == "mlp" else "classifier.3" if name == "vgg" else "last"
    assert made >= set(layers) - {last}
    assert last not in made


def test_flattened_and_concatenated_channels_are_followed():
    flat = wrapped("flat")
    (two,) = [group for group in unit_groups(flat) if group.name == "two"]
    assert {piece.path: piece.index.shape[1] for piece in two.slices} == {"two": 1, "hidden": 16}
    dense = wrapped("dense")
    (stem,) = [group for group in unit_groups(dense) if group.name == "stem"]
    assert {piece.path for piece in stem.slices} >= {"norms.0", "norms.3", "convs.0", "convs.2", "last"}


@pytest.mark.parametrize("criterion", ["spectral", "ndi", "magnitude", "taylor"])
@pytest.mark.parametrize("name", ["mlp", "dense"])
def test_criteria_score_plain_networks(name, criterion):
    pruner = pruner_of(tiny_network(name), criterion=criterion)
    pruner.prune()
    assert all(torch.isfinite(scores).all() and scores.unique().numel() > 1 for scores in pruner.scores.values())


@pytest.mark.parametrize("name", ["mlp", "residual", "flat"])
def test_spectral_compares_channels_by_what_they_contribute(name):
    """Measured better than raw outputs on ResNet-20 and on an MLP, before and after recovery."""

    def scores(**options) -> dict[str, torch.Tensor]:
        pruner = pruner_of(tiny_network(name), criterion="spectral", criterion_args=options)
        pruner.prune()
        return pruner.scores

    default, contributions, raw = scores(), scores(output_form="contributions"), scores(output_form="raw")
    assert all(torch.equal(default[key], contributions[key]) for key in default)
    assert not any(torch.allclose(default[key], raw[key]) for key in default)


# ---- folders


def save(name: str, folder: Path, **fields) -> nn.Module:
    pruner = pruner_of(tiny_network(name), layout="per_layer", allocation="scores", output_dir=str(folder), **fields)
    pruner.prune()
    pruner.save_model()
    return pruner.output.model


FRESH = """
import importlib, json, sys
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
place, names = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, sys.argv[3])
import networks
from hf_spectral_prune.models.cria.channels import cria_class
for name in names:
    network = cria_class(networks.NETWORKS[name][0]).from_pretrained(f"{place}/{name}").eval()
    network.load_state_dict({key: value.clone() for key, value in network.state_dict().items()}, assign=True)
    with torch.inference_mode():
        save_file({"logits": network(networks.input_batch(name, 4)["pixel_values"])}, f"{place}/{name}.result")
"""


@pytest.mark.proves("reload", of=["torch"])
def test_fresh_process_rebuilds_every_network_from_its_folder(forks, tmp_path):
    expected = {}
    for name in NETWORKS:
        network = save(name, tmp_path / name, self_check=False)
        expected[name] = outputs(network, name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["cria_network"] == f"networks:{NETWORKS[name][0].__name__}"
        assert config["cria_channels"]
        for path, widths in config["cria_channels"].items():
            assert widths.items() <= widths_of(network.get_submodule(path)).items()
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert "model.safetensors" in files and "cria_channels.py" in files
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))]
        shapes = {key: value.shape for key, value in load_file(tmp_path / name / "model.safetensors").items()}
        assert shapes == {key: value.shape for key, value in network.state_dict().items()}
    command = [sys.executable, "-c", FRESH, str(tmp_path), json.dumps(list(NETWORKS)), str(TESTS)]
    done = forks.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, logits in expected.items():
        assert torch.equal(load_file(tmp_path / f"{name}.result")["logits"], logits), name


@pytest.mark.slow
def test_saving_checks_the_folder_in_a_process_without_this_package_and_the_card_says_how_to_load_it(new_processes, tmp_path):
    network = save("vgg", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert report["self_check"]["plain"]["max_abs_diff"] == 0
    assert report["self_check"]["plain"]["class"] == "CriaVgg"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: pytorch" in card and "Vgg" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layers"] == NETWORKS["vgg"][1]["layers"] and config["classes"] == 4
    # The result is a network of its class still.
    assert isinstance(network, Vgg) and type(network).__name__ == "CriaVgg"


@pytest.mark.proves("again", of=["torch"])
@pytest.mark.parametrize("name", only(["residual"], NETWORKS))
def test_pruned_network_can_be_pruned_again(name, tmp_path):
    save(name, tmp_path / "first", self_check=False)
    network = cria_class(NETWORKS[name][0]).from_pretrained(tmp_path / "first")
    middle = num_parameters(network)
    pruner = pruner_of(network, layout="per_layer", allocation="scores", output_dir=str(tmp_path / "second"), self_check=False)
    pruner.prune()
    pruner.save_model()
    again = cria_class(NETWORKS[name][0]).from_pretrained(tmp_path / "second")
    assert num_parameters(again) == num_parameters(pruner.output.model) < middle
    assert torch.allclose(outputs(again, name), outputs(pruner.output.model, name), atol=1e-5)


def test_saved_twice_in_one_run_and_loaded_with_other_arguments_stays_the_same(tmp_path):
    network = save("vgg", tmp_path / "out", self_check=False)
    network.save_pretrained(tmp_path / "copy")
    again = cria_class(Vgg).from_pretrained(tmp_path / "copy")
    assert torch.allclose(outputs(again, "vgg"), outputs(network, "vgg"), atol=1e-5)


# ---- what cannot work


class Roll(nn.Module):
    def forward(self, values):
        return values.roll(1, dims=1)


class Round(nn.Module):
    def forward(self, values):
        return values.round().detach()


def sequence(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def test_a_graph_that_cannot_be_traced_names_the_module_or_operation():
    network = tiny_network("mlp")
    network.layers.append(Round())
    refused(lambda: pruner_of(network), "`Mlp` cannot be traced", "after `layers.4`", "detach")
    rolled = sequence(nn.Linear(20, 8), Roll(), nn.Linear(8, 4))
    data = [input_batch("mlp")]
    refused(lambda: pruner_of(rolled, data), "`Sequential`", "channels of `0`", "Roll")


@pytest.mark.parametrize(
    ("name", "shape", "messages"),
    [
        ("mlp", (21,), ("`Mlp` fails on an input of shape (1, 21)", "in `layers.0`")),
        ("residual", (4, 16, 16), ("shape (1, 4, 16, 16)", "in `stem`")),
        ("flat", (3, 32, 32), ("shape (1, 3, 32, 32)", "in `hidden`")),
    ],
)
def test_inputs_of_the_wrong_shape_are_refused(name, shape, messages):
    network = tiny_network(name)
    before = num_parameters(network)
    data = [{"pixel_values": torch.randn(4, *shape), "labels": torch.zeros(4, dtype=torch.int64)}]
    refused(lambda: pruner_of(network, data).prune(), *messages)
    assert num_parameters(network) == before


def test_a_class_that_cannot_be_rebuilt_is_refused_before_anything_is_cut(tmp_path):
    network = Sized(16)
    refused(
        lambda: pruner_of(network, output_dir=str(tmp_path)), "`Sized` cannot be built again", "width", "PyTorchModelHubMixin"
    )
    changed = tiny_network("mlp")
    changed.layers[0] = nn.Linear(20, 16, bias=False)
    refused(lambda: pruner_of(changed, output_dir=str(tmp_path)), "`Mlp()` builds another network", "layers.0.bias")
    assert not list(tmp_path.iterdir())
    # Without a folder to save to, nothing has to be built again.
    assert num_parameters(pruner_of(network).prune().model) < num_parameters(Sized(16))


def test_a_class_that_another_process_cannot_import_is_refused(tmp_path):
    class Local(Mlp):
        pass

    network = Local()
    refused(lambda: pruner_of(network, output_dir=str(tmp_path / "out")), "`Local`", "module", "self_check=False")
    pruner = pruner_of(network, output_dir=str(tmp_path / "out"), self_check=False)
    pruner.prune()
    pruner.save_model()
    assert num_parameters(cria_class(Local).from_pretrained(tmp_path / "out")) == num_parameters(network)


@pytest.mark.parametrize("scope", ["all", "flops"])
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_cut_that_would_empty_a_layer_is_refused(name, scope):
    network = tiny_network(name)
    state = copy.deepcopy(network.state_dict())
    refused(lambda: pruner_of(network, target_scope=scope, target_reduction=0.99).prune(), "would empty layers", "min_channels")
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_group_norms_lose_whole_groups_or_nothing():
    network = Grouped().eval()
    randomise(network)
    output = pruner_of(network, round_to=1, min_channels=1, target_reduction=0.5).prune()
    assert network.norm.num_groups in (2, 3) and network.norm.num_channels == 4 * network.norm.num_groups
    assert network.one.out_channels == network.two.in_channels == network.norm.num_channels
    assert list(output.report["sizes"].values()) == [[4, network.norm.num_groups]]
    refused(lambda: pruner_of(Grouped(groups=1)), "a norm normalises all channels of `one` together")


def test_images_without_labels_and_networks_without_logits():
    data = [{"pixel_values": torch.randn(8, 20)}]
    refused(lambda: pruner_of(tiny_network("mlp"), data, criterion="taylor").prune(), "labels")
    maps = sequence(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    batch = input_batch("residual")
    refused(lambda: pruner_of(maps, [batch], criterion="taylor").prune(), "(8, 4, 12, 12)", "need logits (B, classes)")
    assert maps(batch["pixel_values"]).shape[1] == 4
    refused(lambda: SpectralPruner(tiny_network("mlp")), "there is no data", "calibration_dataset")


def test_reading_a_folder_never_unpickles(tmp_path):
    """A folder with a pickle and no safetensors is no model."""
    save_file({"unused": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save(Residual().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError):
        cria_class(Residual).from_pretrained(tmp_path)


class Behind(nn.Module):
    """Channels of `one` and `two` go through an operation before `three` reads them."""

    def __init__(self, operation: nn.Module, read: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.operation = operation
        self.three, self.last = nn.Conv2d(read, 12, 3, padding=1), nn.Linear(12, 4)

    def forward(self, maps):
        maps = self.operation(torch.relu(self.two(torch.relu(self.one(maps)))))
        return self.last(torch.relu(self.three(maps)).mean(dim=(2, 3)))


class Recurrent(nn.Module):
    """The last channels are read by a GRU, column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.gru, self.last = nn.GRU(16, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, maps):
        columns = torch.relu(self.two(torch.relu(self.one(maps)))).mean(2).transpose(1, 2)
        return self.last(self.gru(columns)[0][:, -1])


@pytest.mark.parametrize(
    ("network", "followed"),
    [(Behind(nn.GLU(1), 16), {"one", "three"}), (Behind(nn.PixelShuffle(2), 8), {"one", "three"}), (Recurrent(), {"one"})],
    ids=["glu", "pixel_shuffle", "gru"],
)
def test_layers_that_tracing_does_not_know_stay_whole_and_the_others_are_pruned(network, followed):
    batch = {"pixel_values": torch.randn(4, 3, 16, 16)}
    pruner = pruner_of(network.eval(), [batch], criterion="energy", units=["channels"], target_scope="prunable")
    assert {group.name for group in unit_groups(pruner.model, ["channels"])} == followed
    before = num_parameters(pruner.model)
    plan = pruner.prune().plan
    assert num_parameters(pruner.model) == plan.parameters_after < before
    assert network(batch["pixel_values"]).shape == (4, 4)


@pytest.mark.parametrize("wrap_in", [nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.3)])
def test_weights_that_are_computed_at_every_pass_are_refused(wrap_in):
    network = Behind(nn.Identity(), 32)
    wrap_in(network.one)
    refused(lambda: pruner_of(network.eval(), [input_batch("vgg")]), "`one` has `weight_", "Make it plain first", "remove")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))), "is scripted"),
        (lambda: nn.DataParallel(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 10))), "Pass its `.module`"),
        (lambda: nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(10)), "Run a batch through it first"),
    ],
)
def test_networks_whose_layers_cannot_be_seen_are_told(network, words):
    refused(lambda: pruner_of(network(), [{"pixel_values": torch.randn(4, 8)}]), words)


def test_a_label_that_a_network_has_no_logit_for_is_told():
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    data = [{"pixel_values": torch.randn(4, 8), "labels": torch.tensor([0, 1, 2, 3])}]
    refused(lambda: pruner_of(network, data, criterion="fisher").prune(), "gives 3 logits, and a label is 3", "from 0")
