"""`python -m hf_spectral_prune`: the `cria` command."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
