"""Bad inputs among recipes, flags and the paths that they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from stage import PAGE, POINTER, Fault, Stage

from hf_spectral_prune.arguments import SpectralPruningArguments
from hf_spectral_prune.cli.arguments import RunArguments
from hf_spectral_prune.cli.main import COMMANDS


def faults() -> Iterator[Fault]:
    yield from _values()
    yield from _recipes()
    yield from _words()
    yield from _paths()
    yield from _contradictions()


def flag(name: str, value: Any, *says: str, command: str = "prune", **more: Any) -> Fault:
    def make(stage: Stage) -> list[str]:
        given = {key: entry(stage) if callable(entry) else entry for key, entry in {name: value, **more}.items()}
        return stage.words(command, **given)

    shown = value.__name__ if callable(value) else value
    extra = "".join(f" with --{key} {entry}" for key, entry in more.items())
    return Fault(f"cria {command} --{name} {shown}{extra}", make, says or (name,))


# Values that no option of this type can have, then those that single options cannot have.
_WRONG_NUMBERS = {int: ["-1", "2.5", "many", "nan", ""], float: ["-1", "much", "nan", "inf", ""]}
_MAY = {("stop_drop", "inf"), ("seed", "-1"), ("seed", "nan"), ("eval_delay", "-1")}
_LARGE = {
    "num_rounds": ["1000000000", "0"],
    "target_reduction": ["0", "1", "1.5", "0.999"],
    "max_moment_gib": ["0", "-3"],
    "ridge": ["1e400"],
    "round_to": ["0"],
    "min_ffn_units": ["0"],
    "min_kv_groups": ["0"],
    "min_channels": ["0"],
    "recalibrate_every": ["0"],
    "num_calibration_samples": ["0"],
    "calibration_batch_size": ["0"],
    "max_seq_length": ["0", "1", "129", "1000000000"],
    "seed": ["1e3", "99999999999999999999999"],
    "logging_steps": ["0"],
    "save_steps": ["0"],
    "eval_steps": ["0"],
}
_CHOSEN = ["target_scope", "layout", "allocation", "compensation", "stock_class", "recovery", "calibration", "dtype"]
_CHOSEN += ["logging_strategy", "eval_strategy", "save_strategy"]
# Read by loggers and callbacks of transformers alone.
_UNREAD = {"metric_for_best_model", "greater_is_better", "load_best_model_at_end", "run_name", "eval_delay"}


def _values() -> Iterator[Fault]:
    both = (SpectralPruningArguments, RunArguments)
    hints = {name: hint for options in both for name, hint in get_type_hints(options).items()}
    for name in dict.fromkeys(field.name for options in both for field in dataclasses.fields(options)):
        if name in _UNREAD:
            continue
        kind = next((kind for kind in (bool, int, float) if hints[name] in (kind, kind | None)), None)
        for value in _WRONG_NUMBERS.get(kind, []):  # type: ignore[arg-type]
            if (name, value) not in _MAY:
                yield flag(name, value, name)
        if kind is bool:
            yield flag(name, "perhaps", name)
    for name, values in _LARGE.items():
        for value in values:
            yield flag(name, value, name.partition("_")[0])
    for name in _CHOSEN:
        yield flag(name, "sideways", name)
    for value in ("tpu", "cuda:99", "cpu:x", ""):
        yield flag("device", value, "device")
    for value in ("spectrum", "SPECTRAL", "", "../criterion"):
        yield flag("criterion", value, "criterion")
    for value in (["ffn", "ffn"], ["neurons"], ["ffn", "neurons"], ["channels"]):
        yield flag("units", value, "ffn" if value == ["ffn", "ffn"] else value[-1])
    for name in ("criterion_args", "recovery_args", "training_args"):
        for text in ("{x", "[1]", "3", '"x"', "{'a': 1}", '{"no_such_option": 1}', "null null", "[" * 100_000):
            more = {} if name == "criterion_args" else {"recovery": "full"}
            yield dataclasses.replace(
                flag(name, text, name if "no_such" not in text else "no_such_option", **more),
                name=f"cria prune --{name} {text[:20]}",
            )
    for text in ('{"num_neighbors": -1}', '{"num_neighbors": "many"}', '{"num_neighbors": 2.5}', '{"num_neighbors": null}'):
        yield flag("criterion_args", text, "num_neighbors", criterion="spectral")
    training = [
        '{"learning_rate": "fast"}',
        '{"max_steps": "many"}',
        '{"max_steps": 2.5}',
        '{"optim": "spiral"}',
        '{"bf16": "perhaps"}',
    ]
    training += [
        '{"lr_scheduler_type": "spiral"}',
        '{"per_device_train_batch_size": 0}',
        '{"output_dir": 3}',
        '{"learning_rte": 1}',
    ]
    for text in training:
        yield flag("training_args", text, "spiral" if "spiral" in text else text.split('"')[1][:6], recovery="full")
    for text in (
        '{"lora_r": 0}',
        '{"lora_r": "x"}',
        '{"lora_alpha": [1]}',
        '{"lora_target_modules": ["c_attn"]}',
        '{"lora_rr": 1}',
    ):
        yield flag("recovery_args", text, "c_attn" if "c_attn" in text else text.split('"')[1][:5], recovery="lora")
    yield flag("stop_metric", "eval_accuracy")
    yield flag("stop_metric", "")
    yield flag("report_to", "spiral", "spiral")
    yield flag("push_to_hub", "true", "hub_model_id")
    yield flag("resume_from_checkpoint", "/nowhere", "/nowhere")
    labelled = {"label_column": "label", "calibration_file": _rows, "model_name_or_path": _classifier}
    yield flag("metric", "spiral", "spiral", **labelled)


def _rows(stage: Stage) -> Any:
    return stage.sources / "rows.jsonl"


def _classifier(stage: Stage) -> Any:
    return stage.sources / "bert"


def recipe(name: str, content: str | bytes, *says: str, **more: Any) -> Fault:
    def make(stage: Stage) -> list[str]:
        file = stage.folder / "recipe.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        command, *words = stage.words("prune", **more)
        return [command, str(file), *words]

    return Fault(f"recipe: {name}", make, says or ("recipe.yaml",))


def _recipes() -> Iterator[Fault]:
    not_yaml = {
        "a bracket open": "units: [ffn",
        "a quote open": "criterion: 'energy",
        "a tab": "criterion:\n\tenergy",
        "two colons": "a: b: c",
        "bad indentation": "a: 1\n b: 2",
        "an unknown alias": "criterion: *energy",
        "a Python object": "criterion: !!python/object/apply:os.system ['touch cria']",
        "two documents": "layout: uniform\n---\nlayout: per_layer",
        "noise": bytes(range(128, 256)),
        "UTF-16": "layout: uniform".encode("utf-16"),
        "a null byte": b"layout: uniform\x00",
        "a git-lfs pointer": POINTER,
        "a page of HTML": PAGE,
        "nested 10,000 deep": "criterion_args: " + "[" * 10_000,
    }
    for name, content in not_yaml.items():
        yield recipe(name, content)
    not_a_table = {
        "a list": "- a\n- b",
        "a word": "energy",
        "a number": "3",
        "empty": "",
        "only comments": "# nothing\n",
        "null": "null",
    }
    for name, content in not_a_table.items():
        yield recipe(name, content)
    twice = ["seed: 1\nseed: 2", "layout: uniform\nround_to: 8\nlayout: per_layer", "criterion_args: {a: 1, a: 2}"]
    for content in twice:
        key = content.partition(":")[0] if "{" not in content else "a"
        yield recipe(f"a key twice: {content!r}", content, f"`{key}`")
    keys = [
        "criterium: energy",
        "Layout: uniform",
        "3: x",
        "null: x",
        "true: x",
        "[a]: x",
        "target-reduction: 0.2",
        "pruning: {layout: uniform}",
    ]
    for content in keys:
        yield recipe(f"an unknown key: {content}", content)
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + row)}: &{chr(98 + row)} [{', '.join([f'*{chr(97 + row)}'] * 9)}]\n" for row in range(9)
    )
    yield recipe("aliases of aliases", bomb)
    yield recipe("aliases of aliases as an option", bomb.replace("j: &j", "criterion_args: &j"))
    yield recipe("aliases of aliases as a key", bomb + "? *j\n: x\n")
    yield recipe("an alias of itself", "criterion_args: &a {x: *a}")
    yield recipe("a value of 10 MB", "criterion: " + "x" * 10**7, "recipe.yaml", criterion=None)
    yield recipe("a name of 10 MB", "x" * 10**7 + ": 1")
    wrong: dict[str, list[Any]] = {
        "num_rounds": ["2.5", "[1]", "{a: 1}", "null", "true", "yes", "2024-01-01", ".inf", ".nan", "1e400", "0x"],
        "target_reduction": ["null", "[0.1]", "{a: 1}", "true", "20 %", ".nan", ".inf", "-0.1", "2"],
        "units": ["ffn", "{a: 1}", "3", "{}", "[[ffn]]", "[3]", "[]"],
        "layout": ["[uniform]", "3", "null", "true", "{a: 1}"],
        "criterion": ["[energy]", "null", "3", "{a: 1}", "true"],
        "criterion_args": ["[1]", "3", "true"],
        "output_dir": ["3", "[a]", "{a: 1}"],
        "self_check": ["perhaps", "3", "[true]", "null"],
        "seed": ["null", "[1]", "1.5"],
        "max_moment_gib": ["0", "-1", "[1]", ".nan"],
        "ridge": [".inf", ".nan", "-1", "null"],
        "dataset_name": ["[a]", "3", "{a: 1}"],
        "training_args": ["[1]", "3", "{learning_rate: fast}", "{1: 2}"],
        "hub_token": ["[secret]"],
    }
    for key, values in wrong.items():
        more = {key: None} if key in ("criterion", "target_reduction", "self_check", "output_dir") else {}
        more |= {"recovery": "full"} if key == "training_args" else {}
        for value in values:
            yield recipe(f"{key}: {value}", f"{key}: {value}\n", key, **more)

    def absent(how: str) -> Callable[[Stage], list[str]]:
        def make(stage: Stage) -> list[str]:
            path = stage.folder / "recipe.yaml"
            if how == "a folder":
                path.mkdir()
            elif how == "a model's weights":
                path.write_bytes((stage.sources / "llama" / "model.safetensors").read_bytes())
            command, *words = stage.words("prune")
            return [command, str(path), *words]

        return make

    for how in ("absent", "a folder", "a model's weights"):
        yield Fault(f"recipe: {how}", absent(how), ("recipe.yaml",))


def plain_words(*words: str, says: tuple[str, ...] = ()) -> Fault:
    return Fault(f"cria {' '.join(words)}"[:80], lambda _: list(words), says)


def _words() -> Iterator[Fault]:
    for word in ("prun", "pruned", "Prune", "marian", "", "--prune", "-x", "help", "prune.py"):
        yield plain_words(word, says=(f"`{word}`",))
    for command in COMMANDS:
        if command == "demo":
            yield plain_words("demo", "--output", "x", says=("--output",))
            continue
        folder = ["gguf", "."] if command == "export" else ["."] if command in ("card", "report", "push") else []
        for words in (["--no_such_flag"], ["--no_such_flag", "1"], ["-q"], ["--no_such_flag=1"]):
            yield plain_words(command, *folder, *words, says=(words[0].partition("=")[0],))
        yield plain_words(command, *(folder or ["absent.yaml"]), "another.yaml", "third.yaml", says=())
    for command in ("prune", "score", "evaluate", "compare", "ablate", "detrimental"):
        yield plain_words(command)
        yield plain_words(command, "--model_name_or_path", says=("model_name_or_path",))
    for command in ("card", "report", "push"):
        yield plain_words(command)
        yield plain_words(command, "/nowhere", says=("/nowhere",))
        yield plain_words(command, __file__, says=("bad_options.py",))
    for words in (
        ["export"],
        ["export", "gguf"],
        ["export", "onnx"],
        ["export", "ggfu", "."],
        ["export", "."],
        ["export", "gguf", "/nowhere"],
    ):
        yield plain_words(*words)
    near = {
        "--target_reducton": "--target_reduction",
        "--targetreduction": "--target_reduction",
        "--model": "--model",
        "--critrion": "--criterion",
    }
    for word, found in near.items():
        yield Fault(f"a flag misspelt: {word}", lambda stage, word=word: [*stage.words("prune"), word, "0.2"], (found,))
    yield Fault("a flag without its value", lambda stage: [*stage.words("prune"), "--seed"], ("seed",))
    yield Fault("a flag shortened", lambda stage: [*stage.words("prune"), "--target_red", "0.2"], ("--target_red",))
    yield Fault("a word too many", lambda stage: ["prune", "a.yaml", "b.yaml"], ())


def _paths() -> Iterator[Fault]:
    """A path that is wrong is told by the flag that named it."""
    files = ["calibration_file", "eval_file", "recovery_file"]
    for name in files:
        more = {"recovery": "full", "training_args": '{"max_steps": 1}'} if name == "recovery_file" else {}
        yield flag(name, "/nowhere/text.txt", f"`{name}`", "/nowhere/text.txt", **more)
        yield flag(name, "/nowhere/rows.jsonl", f"`{name}`", **more)
        yield flag(name, "", name, **more)

        def a_folder(stage: Stage) -> Any:
            return stage.sources

        def unknown(stage: Stage) -> Any:
            return stage.sources / "llama" / "model.safetensors"

        yield flag(name, a_folder, f"`{name}`", **more)
        yield flag(name, unknown, f"`{name}`", "model.safetensors", **more)
    yield flag("eval_file", "/nowhere/text.txt", "`eval_file`", command="evaluate", calibration_file=None)
    yield flag("dataset_name", "/nowhere/data", "/nowhere/data", calibration_file=None)
    yield flag("dataset_name", "nobody/no_such_data", "nobody/no_such_data", calibration_file=None)
    yield flag("dataset_split", "tset", "tset", calibration_file=None, dataset_name=_data_folder)
    yield flag("dataset_config_name", "spiral", "spiral", calibration_file=None, dataset_name=_data_folder)
    yield flag("eval_split", "tset", "tset", calibration_file=None, dataset_name=_data_folder)
    yield flag("text_column", "txt", "txt", calibration_file=lambda stage: stage.sources / "rows.jsonl")
    for value in ("/nowhere/model", "./nowhere", "nobody/no_such_model", "a/b/c", "", "\n", "x" * 5000):
        yield dataclasses.replace(
            flag("model_name_or_path", value, value[:20] if value.strip() else "model"),
            name=f"--model_name_or_path {value[:30]!r}",
        )

    def the_file(stage: Stage) -> Any:
        return stage.sources / "llama" / "config.json"

    yield flag("model_name_or_path", the_file, "config.json")
    for value in ("absent.gguf", "config.json", "../text.txt", ""):
        yield flag("gguf_file", value, "GGUF" if value in ("config.json", "../text.txt") else "gguf")

    def the_model(stage: Stage) -> Any:
        return stage.copy("llama")

    def the_text(stage: Stage) -> Any:
        return stage.copy("text.txt")

    def below_a_file(stage: Stage) -> Any:
        return stage.copy("text.txt") / "out"

    yield flag("output_dir", the_model, "llama")
    yield flag("output_dir", the_text, "text.txt")
    yield flag("output_dir", below_a_file, "text.txt")
    yield flag("output_dir", None, "output_dir")
    yield flag("output_dir", "", "output_dir")
    for command in ("compare", "ablate"):
        yield flag("output_dir", the_model, "llama", command=command)
        yield flag("model_name_or_path", "/nowhere/model", "/nowhere/model", command=command)
    for name in ("image_dir", "eval_image_dir"):
        yield flag(name, "/nowhere/images", name, model_name_or_path=lambda stage: stage.sources / "vit", calibration_file=None,
                   **({"image_dir": lambda stage: stage.sources / "images"} if name != "image_dir" else {}))  # fmt: skip
    yield flag("image_dir", "/nowhere/images", "image", calibration_file=None)


def _data_folder(stage: Stage) -> Any:
    folder = stage.folder / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes((stage.sources / "rows.jsonl").read_bytes())
    return folder


def _text(stage: Stage) -> Any:
    return stage.sources / "text.txt"


def _contradictions() -> Iterator[Fault]:
    yield flag("layout", "per_layer", "stock_class", stock_class="mistral")
    yield flag("layout", "per_layer", "allocation", allocation="proportional")
    yield flag("save_strategy", "steps", "output_dir", output_dir=None)
    yield flag("save_strategy", "epoch", "save_strategy")
    yield flag("eval_split", "test", "eval_split")
    yield flag("dataset_name", "x", "calibration_file")
    yield flag("image_dir", "x", "image_dir")
    yield flag("calibration_file", None, "calibrat")
    yield flag("label_column", "label", "label_column")
    yield flag("label_column", "label", "label_column", calibration_file=None)
    for name in ("metric", "text_pair_column"):
        yield flag(name, "accuracy", name, "label_column")
    yield flag("metric", "f1", "metric", "label_column", command="evaluate")
    yield flag("calibration", "self", "calibration_file")
    yield flag("calibration", "python_docs", "dataset_name", calibration_file=None, dataset_name="x/y")
    yield flag("training_args", '{"max_steps": 1}', "training_args", "`recovery` is `none`")
    yield flag("recovery_args", '{"lora_r": 8}', "recovery_args", "`recovery` is `none`")
    yield flag("eval_file", _text, "`eval_file`", "`calibration_file`")
    yield flag("eval_image_dir", "x", "eval_image_dir", "images")
    yield flag("num_eval_samples", "0", "num_eval_samples", command="evaluate")
    yield flag("recovery_file", _text, "recovery_file", "`recovery` is `none`")
    yield flag("tensors_file", "x.npz", "tensors_file")
    yield flag("recovery", "distill", "num_recovery_samples", num_recovery_samples=0)
    yield flag("compensation", "bias", "bias", stock_class="mistral")
    yield flag("criterion", "taylor", "label", model_name_or_path=lambda stage: stage.sources / "bert")
    yield flag("target_scope", "flops", "flops")
    yield flag("num_eval_samples", "-1", "num_eval_samples", command="compare")
    yield flag("num_eval_samples", "0", "num_eval_samples", command="ablate")
    for name, value in {
        "criteria": ["energy", "energee"],
        "reductions": ["2"],
        "compensations": ["much"],
        "recoveries": ["soon"],
    }.items():
        yield flag(name, value, value[-1], command="compare")
    for name, value in {"criteria": ["energee"], "units": ["neurons"]}.items():
        yield flag(name, value, value[-1], command="ablate")
    for value in ("spiral", ""):
        yield flag(
            "task",
            value,
            "task",
            command="detrimental",
            calibration_file=None,
            num_eval_samples=None,
            max_seq_length=None,
            task_file=__file__,
        )
    yield flag(
        "task_file",
        "/nowhere.jsonl",
        "/nowhere.jsonl",
        command="detrimental",
        calibration_file=None,
        num_eval_samples=None,
        max_seq_length=None,
    )
