"""Publishing: the model card of a saved folder, and the push to the Hub."""

from .card.write import build_card, read_card, write_card
from .saved_folder import SavedFolder, check_fit_to_publish, file_digests, read_folder

__all__ = [
    "SavedFolder",
    "build_card",
    "check_fit_to_publish",
    "file_digests",
    "read_card",
    "read_folder",
    "write_card",
]
