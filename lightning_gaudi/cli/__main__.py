"""``python -m lightning_gaudi.cli``: the console script without installing it."""

from lightning_gaudi.cli.main import main

main()
