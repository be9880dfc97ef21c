"""Saving: the output folder, its check in a fresh process, and checkpoints."""
