"""The `cria` command; its subcommands are one module each, with a function `main(argv)`."""

from .main import main

__all__ = ["main"]
