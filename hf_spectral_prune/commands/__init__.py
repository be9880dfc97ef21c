"""The subcommands of `cria`: one module each, with a function `main(argv)`."""
