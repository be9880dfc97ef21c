"""Other pruners on the protocol of `frontier.py`: the same model, rows, held-out texts and numbers of parameters, no training.

    pip install --no-deps optipfair==0.4.2
    python benchmarks/rivals.py --wikitext FOLDER --c4 FILE [--shares 0.1 0.2 0.3 0.5] [--output results.json]

optipfair removes FFN neurons by the magnitudes of their weights (MAW, L2), or with calibration rows by magnitudes and activations
(its hybrid of MAW), or whole layers: the last ones, or those that change their input the least. Of the FFN goes what makes the
share of attention and FFN. A cell is kept in `--cells` as soon as it is finished.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from frontier import Texts, measure, read, write
from transformers import PreTrainedModel

from hf_spectral_prune.arguments import ModelArguments
from hf_spectral_prune.cli.demo_run import smollm2_folder
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import layers_of, unit_groups
from hf_spectral_prune.models.loading import load_model, load_tokenizer
from hf_spectral_prune.utils.environment import library_versions, machine


def _ffn_percentage(model: PreTrainedModel, share: float) -> float:
    """Per cent of the FFN neurons that hold this share of the parameters of attention and FFN."""
    groups = unit_groups(model)
    costs = {kind: sum(g.size * g.parameters_per_unit for g in groups if g.kind == kind) for kind in ("ffn", "heads")}
    return 100 * share * sum(costs.values()) / costs["ffn"]


def _by_neurons(method: str, with_rows: bool) -> Callable[..., PreTrainedModel]:
    def prune(model: PreTrainedModel, share: float, rows: list[Any]) -> PreTrainedModel:
        from optipfair import prune_model

        calibration = {"dataloader": rows} if with_rows else {}
        percentage = _ffn_percentage(model, share)
        pruned: PreTrainedModel = prune_model(
            model, neuron_selection_method=method, pruning_percentage=percentage, show_progress=False, **calibration
        )
        return pruned

    return prune


def _by_layers(least_changing: bool) -> Callable[..., PreTrainedModel]:
    def prune(model: PreTrainedModel, share: float, rows: list[Any]) -> PreTrainedModel:
        from optipfair import analyze_layer_importance, prune_model

        number = round(share * len(layers_of(model)))
        which: dict[str, Any] = {"num_layers_to_remove": number}
        if least_changing:
            scores = analyze_layer_importance(model, rows, show_progress=False)
            which = {"layer_indices": sorted(sorted(scores, key=scores.__getitem__)[:number])}
        pruned: PreTrainedModel = prune_model(model, pruning_type="DEPTH", show_progress=False, **which)
        return pruned

    return prune


METHODS: dict[str, Callable[..., PreTrainedModel]] = {
    "optipfair MAW": _by_neurons("MAW", with_rows=False),
    "optipfair L2": _by_neurons("L2", with_rows=False),
    "optipfair MAW, hybrid": _by_neurons("MAW", with_rows=True),
    "optipfair depth, last": _by_layers(least_changing=False),
    "optipfair depth, least changing": _by_layers(least_changing=True),
}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All cells; those that are missing are run."""
    folder, gguf_file = (options.model, options.gguf_file) if options.model else smollm2_folder()
    loading = ModelArguments(model_name_or_path=str(folder), gguf_file=gguf_file, dtype="float32", device=options.device)
    model, tokenizer = load_model(loading), load_tokenizer(loading)
    texts = Texts(options, tokenizer)
    rows = texts.calibration(options.text, options.seed)
    held_out = {name: data.protocol for name, data in texts.held_out.items()}
    protocol = {"calibration": rows.protocol, "held_out": held_out, "parameters": num_parameters(model)}
    path = options.cells / "dense.json"
    dense = read(path, protocol) or write(path, {"protocol": protocol, "perplexity": measure(model, texts)})
    cells = []
    for share in options.shares:
        for method in options.methods:
            path = options.cells / f"{share:g}-{method.replace(' ', '_').replace(',', '')}.json"
            cell = read(path, protocol)
            if cell is None:
                began = time.perf_counter()
                batches = [{name: value.to(model.device) for name, value in batch.items()} for batch in rows.batches]
                pruned = METHODS[method](copy.deepcopy(model), share, batches).eval()
                found = {"seconds": time.perf_counter() - began, "parameters": num_parameters(pruned)}
                found["perplexity"] = measure(pruned, texts)
                cell = write(path, {"protocol": protocol, "method": method, "share": share, **found})
            print(method, share, cell["parameters"], cell["perplexity"], flush=True)
            cells.append({name: value for name, value in cell.items() if name != "protocol"})
    versions = library_versions() | {"optipfair": _version()}
    where = {"machine": machine(), "device": options.device, "versions": versions}
    return {"protocol": protocol, **where, "dense": dense["perplexity"], "cells": cells}


def _version() -> str:
    import optipfair

    return str(optipfair.__version__)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--c4", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="Folder of a causal language model; SmolLM2 by default.")
    parser.add_argument("--gguf_file", help="GGUF file inside that folder.")
    parser.add_argument("--text", default="wikitext", choices=["wikitext", "c4"], help="What the rows are drawn from.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=128, help="Calibration rows of 512 tokens.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", type=Path, default=Path("rivals_cells"), help="Folder for the finished cells.")
    parser.add_argument("--output", type=Path, default=Path("rivals.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    write(options.output, run(options))


if __name__ == "__main__":
    main()
