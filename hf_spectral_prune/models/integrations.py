"""Makes other libraries know the Cria classes: PEFT's default targets, and vLLM's plugins."""

from __future__ import annotations

from types import ModuleType

from wrapt import register_post_import_hook


def add_peft_defaults(constants: ModuleType) -> None:
    """Gives every Cria model type its stock type's default targets in each of PEFT's tables (LoRA, IA3, ...).

    Args:
        constants: the module `peft.utils.constants`.
    """
    from .cria import MODULES, stock_type

    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict):
            for cria in MODULES:
                if stock_type(cria) in table:
                    table.setdefault(cria, table[stock_type(cria)])


def register_with_peft() -> None:
    """Adds the Cria types to PEFT's tables of default targets: now, or when PEFT is imported."""
    # PEFT reads these tables when an adapter is made, and asks nobody. A user may import it after this package and after
    # loading the model, so that none of our code runs in between; and importing it here takes seconds that most runs need not
    # spend. What is left is to be told when it is imported.
    register_post_import_hook(add_peft_defaults, "peft.utils.constants")


def register() -> None:
    """Entry point for other libraries' plugins (`vllm.general_plugins`): registers the Cria classes with the Auto classes."""
    from . import cria  # noqa: F401  (importing it registers them)
