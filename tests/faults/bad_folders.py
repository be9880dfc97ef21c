"""Bad inputs among what the command line wrote: plan, report, state, card, comparison, and the folders to export and push."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stage import JSON_DAMAGES, Fault, Stage, change, drop_json, set_json

PLAN, REPORT, STATE, SCORES = "pruning_plan.json", "pruning_report.json", "pruner_state.json", "pruning_scores.json"


def written(
    name: str, command: str, act: Callable[[Path], Any], *says: str, source: str = "pruned", harmless: bool = False
) -> Fault:
    """`cria card`, `report`, `push` or `export gguf` on a copy of a folder with something done to it."""

    def make(stage: Stage) -> list[str]:
        folder = stage.copy(source)
        for page in ("README.md", "report.html"):
            (folder / page).unlink(missing_ok=True)
        act(folder)
        more = ["--hub_model_id", "me/pruned", "--hub_token", "hf_none"] if command == "push" else []
        return [*command.split(), str(folder), *more]

    return Fault(f"cria {command}: {name}", make, says, harmless)


def faults() -> Iterator[Fault]:
    for file in (PLAN, REPORT, STATE):
        for how, damage in JSON_DAMAGES.items():
            yield written(f"{file}: {how}", "card", lambda folder, file=file, damage=damage: change(folder / file, damage), file)
        for command in ("card", "report", "push"):
            yield written(f"{file}: absent", command, lambda folder, file=file: (folder / file).unlink(), file)
    for how, damage in JSON_DAMAGES.items():
        yield written(f"{SCORES}: {how}", "report", lambda folder, damage=damage: change(folder / SCORES, damage), SCORES)
    yield from _values()
    yield from _cards()
    yield from _comparisons()
    yield from _exports()
    yield from _pushes()


def _values() -> Iterator[Fault]:
    report: dict[tuple[str, ...], list[Any]] = {
        ("parameters_before",): [None, "many", [], {}, 0],
        ("parameters_after",): [None, "many", [], {}],
        ("reduction",): [None, "much", []],
        ("layout",): [None, 3, []],
        ("sizes",): [None, 3, [], {"layers.0.ffn": 3}, {"layers.0.ffn": ["a", "b"]}],
        ("metrics_before",): [None, 3, [], "x", {"before_perplexity": "x"}],
        ("metrics_after",): [None, 3, [], {"after_perplexity": None}],
        ("arguments",): [None, 3, [], "x"],
        ("arguments", "criterion_args"): [3],
        ("calibration",): [3, [], "x"],
        ("evaluation",): [3, [], "x"],
        ("versions",): [None, 3, [], "x"],
        ("notes",): [3],
        ("recovery",): [3, [], "x"],
    }
    for names, values in report.items():
        for value in values:
            for command in ("card", "report"):
                yield written(
                    f"{REPORT}: {'.'.join(names)} = {json.dumps(value)}",
                    command,
                    lambda folder, names=names, value=value: set_json(folder / REPORT, *names, to=value),
                    REPORT,
                    harmless=names == ("arguments", "criterion_args"),
                )
    plan: dict[tuple[str, ...], list[Any]] = {
        ("kept",): [None, 3, []],
        ("kept", "layers.0.ffn"): [None, [True, 5], [0.5], ["a"], [3, 1], []],
        ("sizes",): [None, 3],
        ("sizes", "layers.0.ffn"): ["x", None, 2.5],
        ("criterion",): [3, None],
        ("notes",): [3, [3]],
    }
    for names, values in plan.items():
        for value in values:
            yield written(
                f"{PLAN}: {'.'.join(names)} = {json.dumps(value)}",
                "card",
                lambda folder, names=names, value=value: set_json(folder / PLAN, *names, to=value),
                PLAN,
            )
    for name, value in {"log_history": 3, "global_step": "x"}.items():
        for command in ("card", "report"):
            yield written(
                f"{STATE}: {name} = {value!r}",
                command,
                lambda folder, name=name, value=value: set_json(folder / STATE, name, to=value),
                STATE,
            )


def _cards() -> Iterator[Fault]:
    """A card that is there already is brought up to date, so it is read."""
    heads = {
        "not YAML": "---\na: [\n---\n",
        "a list": "---\n- a\n---\n",
        "a Python object": "---\na: !!python/object/apply:os.system ['true']\n---\n",
        "tags that are a number": "---\ntags: 3\n---\n",
        "results that are a text": "---\nmodel-index: results\n---\n",
        "results of numbers": "---\nmodel-index: [3]\n---\n",
    }  # fmt: skip
    for name, head in heads.items():
        yield written(
            f"README.md: {name}",
            "card",
            lambda folder, head=head: (folder / "README.md").write_text(f"{head}# Mine\n"),
            "README.md",
        )
    yield written(
        "README.md: latin-1",
        "card",
        lambda folder: (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\ncaf\xe9\n"),
        "README.md",
    )
    yield written("README.md: a folder", "card", lambda folder: (folder / "README.md").mkdir(), "README.md")


def _comparisons() -> Iterator[Fault]:
    file = "comparison.json"
    for how, damage in JSON_DAMAGES.items():
        yield written(
            f"{file}: {how}", "report", lambda folder, damage=damage: change(folder / file, damage), file, source="comparison"
        )
    content = {"cells": [None, 3, "x", [3], [None], [{}]], "protocol": [None, 3, [], "x"]}
    for name, values in content.items():
        for value in values:
            yield written(
                f"{file}: {name} = {json.dumps(value)}",
                "report",
                lambda folder, name=name, value=value: set_json(folder / file, name, to=value),
                file,
                source="comparison",
            )
    cell = {
        "metrics": [None, 3, {"perplexity": "x"}],
        "label": [None, 3],
        "parameters": ["x", None],
    }
    for name, values in cell.items():
        for value in values:
            yield written(
                f"{file}: a cell's {name} = {json.dumps(value)}",
                "report",
                lambda folder, name=name, value=value: set_json(folder / file, "cells", 0, name, to=value),
                file,
                source="comparison",
            )


def _exports() -> Iterator[Fault]:
    def set_config(name: str, value: Any) -> Callable[[Path], Any]:
        return lambda folder: set_json(folder / "config.json", name, to=value)

    for how, damage in JSON_DAMAGES.items():
        yield written(
            f"config.json: {how}",
            "export gguf",
            lambda folder, damage=damage: change(folder / "config.json", damage),
            "config.json",
            source="bytes",
        )
    for name, values in {
        "num_hidden_layers": [-1, "x", 10**9],
        "architectures": [None, [3]],
        "model_type": ["lama", "bert"],
        "head_dim": [3],
    }.items():
        for value in values:
            yield written(f"config.json: {name} = {value}", "export gguf", set_config(name, value), source="bytes")
    yield written("no tokenizer", "export gguf", lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer", source="bytes")
    yield written("a tokenizer of words", "export gguf", lambda folder: None, source="llama")
    yield written(
        "weights of half a file",
        "export gguf",
        lambda folder: change(folder / "model.safetensors", lambda b: b[: len(b) // 2]),
        "model.safetensors",
        source="bytes",
    )
    yield written("weights absent", "export gguf", lambda folder: (folder / "model.safetensors").unlink(), source="bytes")
    for value in ("f64", "Q8_0", "", "3"):
        yield Fault(
            f"cria export gguf --outtype {value}",
            lambda stage, value=value: ["export", "gguf", str(stage.sources / "bytes"), "--outtype", value],
            ("outtype",),
        )
    for value in ("model.bin", "", "/nowhere/model.gguf", "."):
        yield Fault(
            f"cria export gguf --output_file {value}",
            lambda stage, value=value: ["export", "gguf", str(stage.sources / "bytes"), "--output_file", value],
            ("output_file",),
        )


def _pushes() -> Iterator[Fault]:
    yield written("never self-checked", "push", lambda folder: None, "self-check")
    for value in (
        None,
        [],
        3,
        "x",
        {"plain": 3},
        {"plain": {}},
        {"plain": {"max_abs_diff": "x"}},
        {"plain": {"max_abs_diff": 1.0}},
    ):
        yield written(
            f"self_check = {json.dumps(value)}",
            "push",
            lambda folder, value=value: set_json(folder / REPORT, "self_check", to=value),
            "self_check" if not value else "",
        )
    passed = {"plain": {"max_abs_diff": 0.0}}
    for value in (None, [], 3, "x", {"config.json": 3}, {"model.safetensors": {"size": 1, "sha256": "0"}}):

        def act(folder: Path, value: Any = value) -> None:
            set_json(folder / REPORT, "self_check", to=passed)
            set_json(folder / REPORT, "files", to=value)

        yield written(f"files = {json.dumps(value)}", "push", act)
    yield written("without self_check", "push", lambda folder: drop_json(folder / REPORT, "self_check"))
