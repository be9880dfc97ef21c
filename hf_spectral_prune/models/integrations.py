"""Makes other libraries know the Cria classes: transformers' Auto classes, PEFT's default targets, and vLLM's plugins.

Nothing is imported for it: not transformers, not PEFT, and no family's classes before a model needs them. An import of any of
these is awaited instead, so that `cria --help` answers at once and a user may import the libraries in any order.
"""

from __future__ import annotations

import copyreg
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

from . import cria
from .cria import STOCK_TYPES, config_class, load, task_classes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def register() -> None:
    """Registers the Cria types with transformers and PEFT: now, or when these are imported.

    Importing the package calls it. It is also the entry point for other libraries' plugins (`vllm.general_plugins`).
    """
    register_post_import_hook(_announce, "transformers.models.auto.configuration_auto")
    for name in STOCK_TYPES:
        # Whoever imports the family's module: `load`, or pickle.
        register_post_import_hook(_add_classes, f"{cria.__name__}.{name}")
    # PEFT reads its tables when an adapter is made, and asks nobody; importing it takes seconds that most runs need not spend.
    register_post_import_hook(add_peft_defaults, "peft.utils.constants")


def _config_class(model_type: str) -> type[PreTrainedConfig]:
    return config_class(load(model_type))


class _Announced(type):
    """Stands in `AutoConfig` for the config class of the Cria type that it is named after, until something is asked of it.

    transformers has no way to register a class by name. Loading the real one puts that in this one's place.
    """

    def __getattr__(cls, name: str) -> Any:
        return getattr(_config_class(cls.__name__), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        return _config_class(cls.__name__)(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _config_class(cls.__name__))


# `CONFIG_MAPPING` of transformers can be pickled, and what stands in it is not to be found by its name.
copyreg.pickle(_Announced, lambda cls: (_config_class, (cls.__name__,)))  # type: ignore[arg-type, return-value]


def _announce(configuration_auto: ModuleType) -> None:
    for name in STOCK_TYPES:
        if f"{cria.__name__}.{name}" not in sys.modules:
            stands_for = _Announced(name, (), {"__module__": __name__})
            configuration_auto.AutoConfig.register(name, stands_for, exist_ok=True)


def _add_classes(module: ModuleType) -> None:
    import transformers

    config = config_class(module)
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, cls in task_classes(module).items():
        getattr(transformers, auto).register(config, cls, exist_ok=True)
        # From here on `save_pretrained`, and so `Trainer.save_model` and `push_to_hub`, ship the modelling files.
        cls.register_for_auto_class(auto)


def add_peft_defaults(constants: ModuleType) -> None:
    """Gives every Cria model type its stock type's default targets in each of PEFT's tables (LoRA, IA3, ...).

    Args:
        constants: the module `peft.utils.constants`.
    """
    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict):
            for cria_type, stock in STOCK_TYPES.items():
                if stock in table:
                    table.setdefault(cria_type, table[stock])
