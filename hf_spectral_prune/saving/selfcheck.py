"""Reloads a saved folder in a process of its own and prints what came back, as JSON. Run by `reload.py`, not imported.

Usage: selfcheck.py FOLDER PROBE THREADS ATTENTION DEVICE AUTO. PROBE is a safetensors file with the inputs and the expected
first output, AUTO the name of the Auto class to load with. The process ends when its stdin does, which the parent holds open.
The package is not imported before the folder has been loaded without it, so the folder is proved to stand alone.
"""

import importlib
import importlib.util
import json
import os
import sys
import threading

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its module names must not shadow anything
    # The parent never writes to stdin: once this can be read, its end is closed.
    threading.Thread(target=lambda: os._exit(len(os.read(0, 1)) + 1), daemon=True).start()

import torch
import transformers
from safetensors.torch import load_file


def compare(folder: str, probe: dict, auto_name: str, attention: str, device: str, **options: object) -> dict:
    """Loads the folder with an Auto class and compares its first output with the expected one."""
    auto = getattr(transformers, auto_name)
    options |= {"dtype": "auto", "attn_implementation": attention, "output_loading_info": True}
    model, info = auto.from_pretrained(folder, **options)
    model.eval().to(device)
    for value in (*model.parameters(), *model.buffers()):
        value.data = value.data.clone()  # a mapped file is not aligned as fresh memory is, and may take another kernel
    inputs = {name: value.to(device) for name, value in probe.items() if name != "expected"}
    with torch.inference_mode():
        output = model(**inputs)[0].float().cpu()
    return {**differences(model, output, probe), "missing": sorted(info["missing_keys"])}


def compare_network(folder: str, probe: dict, name: str, device: str) -> dict:
    """The same for a plain network, whose class `module:name` is imported, and narrowed by the file in the folder."""
    module, _, qualified = name.partition(":")
    network: object = importlib.import_module(module)
    for part in qualified.split("."):
        network = getattr(network, part)
    spec = importlib.util.spec_from_file_location("cria_channels", f"{folder}/cria_channels.py")
    assert spec is not None and spec.loader is not None
    shipped = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shipped)
    inputs = probe["pixel_values"].to(device)
    model = shipped.cria_class(network).from_pretrained(folder, strict=True).eval().to(device, inputs.dtype)
    with torch.inference_mode():
        output = model(inputs)
    return differences(model, (output if isinstance(output, torch.Tensor) else output[0]).float().cpu(), probe)


def differences(model: torch.nn.Module, output: torch.Tensor, probe: dict) -> dict:
    """What the other process wants to know."""
    expected = probe["expected"].float()
    same_shape = output.shape == expected.shape
    return {
        "class": type(model).__name__,
        "max_abs_diff": float((output - expected).abs().max()) if same_shape else float("inf"),
        "max_abs": float(expected.abs().max()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sums": {name: float(value.double().sum()) for name, value in model.state_dict().items()},
    }


def main() -> None:
    folder, probe_file, threads, attention, device, auto_name = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    probe = load_file(probe_file)
    results = {}
    if "cria_network" in config:
        results["plain"] = compare_network(folder, probe, config["cria_network"], device)
    elif "auto_map" in config:
        results["remote_code"] = compare(folder, probe, auto_name, attention, device, trust_remote_code=True)
        assert "hf_spectral_prune" not in sys.modules
        import hf_spectral_prune  # noqa: F401  (importing registers the classes)

        results["with_package"] = compare(folder, probe, auto_name, attention, device)
    else:
        results["plain"] = compare(folder, probe, auto_name, attention, device)
        assert "hf_spectral_prune" not in sys.modules
    print(json.dumps(results))


if __name__ == "__main__":
    main()
