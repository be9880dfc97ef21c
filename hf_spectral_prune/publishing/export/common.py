"""What the exports share: the config of a folder, its state, and a file that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from ...models.folder_files import check_files
from ...models.loading import network_in
from ...utils.words import in_a_line
from ..saved_folder import CONFIG, REPORT, check_fit_to_publish, read_folder


def read_config(folder: str | Path) -> PreTrainedConfig:
    """The config of a model folder, which may be any folder that `save_pretrained` wrote.

    A folder of a pruning run must also be as the run left it.

    Raises:
        FileNotFoundError: no such folder, or it holds no model.
        ValueError: the config cannot be read or names no class, the model is quantised, or a file was changed since the
            self-check (says which).
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"`{folder}` is not a folder. Name one that `cria prune` or `save_pretrained()` wrote.")
    if not (path / CONFIG).is_file():
        raise FileNotFoundError(f"`{folder}` has no `{CONFIG}`, so it is no model folder. Name one.")
    check_files(path)
    network = network_in(path)
    if network is not None:
        raise ValueError(
            f"`{folder}` holds the plain network `{network}`, and only models of transformers are exported. Load it by the code "
            "in its `README.md`, then call `torch.onnx.export`."
        )
    if (path / REPORT).is_file():
        saved = read_folder(path)
        # A run without a self-check has nothing to compare with; the shapes are checked all the same.
        if saved.report.self_check and saved.report.files:
            check_fit_to_publish(saved)
    try:
        config = AutoConfig.from_pretrained(path)
        for index in range(config.num_hidden_layers if getattr(config, "is_heterogeneous", False) else 0):
            config.per_layer_config[index]  # a layer's own values are checked when they are read
    except (ValueError, OSError, KeyError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"`{path / CONFIG}` cannot be read: {in_a_line(error)}.") from None
    if not config.architectures:
        raise ValueError(f"`{path / CONFIG}` names no class in `architectures`. Save the model again.")
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"The model in `{folder}` is quantised, and is exported from its unquantised weights. Export those, and let the "
            "format quantise (`cria export gguf FOLDER --outtype q8_0`)."
        )
    return config


def choose_output(folder: str | Path, output_file: str | Path | None, default: str, suffix: str) -> Path:
    """The file to write: the named one, or `default` inside the folder.

    Raises:
        ValueError: its name does not end in `suffix`, or it is a folder.
        FileNotFoundError: the folder it would be in does not exist.
    """
    output = Path(folder) / default if output_file is None else Path(output_file)
    if output.suffix != suffix:
        raise ValueError(f"`output_file` `{output}` must end in `{suffix}`.")
    if output.is_dir():
        raise ValueError(f"`output_file` `{output}` is a folder. Name a file.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"`output_file` `{output}`: there is no folder `{output.parent}`. Make it first.")
    return output
