"""Gives any PyTorch network the face of a transformers model for image classification, so that it is pruned in the same way."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from ..utils.words import first_line
from .cria import channels
from .cria.channels import cria_class

# Name under which `cria/channels.py` lies in a saved folder.
SHIPPED_FILE = "cria_channels.py"


class TorchConfig(PreTrainedConfig):
    """What a pruning run asks of a config.

    Attributes:
        input_shape: shape of one input, e.g. [3, 32, 32] or [784].
        cria_channels: {path: {"in": n, "out": n}} of the layers that were narrowed.
    """

    model_type = "torch"

    def __init__(
        self, input_shape: list[int] | None = None, cria_channels: dict[str, dict[str, int]] | None = None, **kwargs: Any
    ) -> None:
        self.input_shape = input_shape or []
        self.cria_channels = cria_channels
        super().__init__(**kwargs)


class TorchModelForImageClassification(PreTrainedModel):
    """A network `logits = network(inputs)` with inputs under the name `pixel_values`, whatever they are.

    The network is changed in place. `save_pretrained` writes the network alone, by huggingface_hub's PyTorchModelHubMixin.
    """

    config_class = TorchConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""

    def __init__(self, config: TorchConfig, network: nn.Module) -> None:
        super().__init__(config)
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutputWithNoAttention:
        """Logits (B, classes), and the mean cross-entropy where there are labels (B,).

        Raises:
            ValueError: the network returns something else than logits, or has none for a label.
        """
        logits = self.network(pixel_values)
        if labels is None:
            return ImageClassifierOutputWithNoAttention(logits=logits)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"`{type(self.network).__name__}` returns {shape}, and labels need logits (B, classes). Choose a criterion that "
                "needs no labels, or prune the network that returns logits."
            )
        if not labels.is_floating_point() and bool((labels >= logits.shape[1]).any()):
            raise ValueError(
                f"`{type(self.network).__name__}` gives {logits.shape[1]} logits, and a label is {int(labels.max())}. Count "
                "labels from 0, or build the network with a class for each."
            )
        # One place for every kind of loss: a network that ends in log_softmax gets the same loss from it.
        return ImageClassifierOutputWithNoAttention(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """The weights are the network's own."""

    def save_pretrained(self, save_directory: str | Path, **_: object) -> None:  # type: ignore[override]
        """Writes weights and a config from which `cria_class(Network).from_pretrained(folder)` rebuilds the narrow network."""
        folder = Path(save_directory)
        network = as_saveable(self.network, self.config.cria_channels)
        network.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # a card without figures
        shutil.copyfile(str(channels.__file__), folder / SHIPPED_FILE)


def check_unwrapped(model: object) -> None:
    """Checks that a model is not inside another object, which would hide its layers from the cut.

    Raises:
        ValueError: it is compiled or scripted, spread over devices, or carries adapters of PEFT; or its shapes are not known yet.
    """
    if hasattr(model, "_orig_mod"):  # first, since a compiled model passes on what it is asked for
        raise ValueError("The model is compiled, and compiled code does not see a cut. Pass the model before `torch.compile`.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("The model is scripted, and compiled code does not see a cut. Pass the model before `torch.jit`.")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"The model is inside a `{type(model).__name__}`, which hides its layers. Pass its `.module`.")
    if isinstance(model, nn.Module) and any(map(nn.parameter.is_lazy, model.parameters())):
        raise ValueError("The model has lazy layers, whose shapes are not known yet. Run a batch through it first.")
    if hasattr(model, "get_base_model") or hasattr(model, "peft_config"):
        raise ValueError(
            f"The `{type(model).__name__}` carries adapters, which hide the layers below them. Merge the adapters first "
            "(`model = model.merge_and_unload()`), or train without them (no `peft_config`)."
        )


def wrap(network: nn.Module, example: Tensor) -> TorchModelForImageClassification:
    """A plain network as a model that can be pruned.

    Args:
        example: one input (1, ...) as the network takes it; its shape is what tracing and counting use.
    """
    config = TorchConfig(input_shape=list(example.shape[1:]), num_labels=2)
    config.cria_channels = (getattr(network, "_hub_mixin_config", None) or {}).get("cria_channels")
    return TorchModelForImageClassification(config, network).train(network.training)


def as_saveable(network: Any, widths: channels.Widths | None) -> channels.CriaNetwork:
    """The network with the class and config that rebuild it, in place.

    Raises:
        ValueError: its class takes arguments that nobody recorded.
    """
    check_rebuildable(network, widths)
    arguments = dict(getattr(network, "_hub_mixin_config", None) or {})
    original = original_class(type(network))
    network.__class__ = cria_class(type(network))
    name = f"{original.__module__}:{original.__qualname__}"
    network._hub_mixin_config = {**arguments, "cria_channels": widths, "cria_network": name}
    return network


def original_class(cls: type) -> type:
    """The class of the network before `cria_class`."""
    return cls.__bases__[0] if issubclass(cls, channels.CriaNetwork) else cls


def check_rebuildable(network: nn.Module, widths: channels.Widths | None = None) -> None:
    """Checks that a network's class builds it again from what its config will hold.

    Args:
        widths: of its layers; by default those of the config it was loaded from.

    Raises:
        ValueError: it does not; says how to record the arguments.
    """
    arguments = dict(getattr(network, "_hub_mixin_config", None) or {})
    arguments = {key: value for key, value in arguments.items() if key != "cria_network"}
    if widths is not None:
        arguments["cria_channels"] = widths
    name = type(network).__name__
    remedy = "Derive it from `huggingface_hub.PyTorchModelHubMixin` too, which records the arguments it is made with"
    try:
        with torch.device("meta"):
            built = cria_class(type(network))(**arguments)
    except Exception as error:  # whatever the network's own code raises
        reason = first_line(error)
        raise ValueError(f"`{name}` cannot be built again from its config ({reason}). {remedy}.") from None
    expected, found = ({key: value.shape for key, value in model.state_dict().items()} for model in (network, built))
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        raise ValueError(f"`{name}()` builds another network (`{differing[0]}` differs). {remedy}.")


def importable(cls: type) -> bool:
    """Whether another process can import the class by its module and name."""
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return False
    return getattr(importlib.import_module(cls.__module__), cls.__name__, None) is cls
