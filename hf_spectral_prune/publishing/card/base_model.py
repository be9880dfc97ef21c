"""What is known of the model that was pruned: its name, its id on the Hub, and the licence on its own card."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, model_info, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from ...utils.types import Json
from ...utils.yaml_text import load_yaml

# Metadata of the base model's card that holds for what is cut from it, too.
CARRIED_OVER = ("license", "license_name", "license_link", "language")
_SECONDS = 5.0  # that the Hub may take to answer
_MOST = 2**20  # bytes of a card that are read


def base_model_facts(name_or_path: str | None, hub_id: str | None = None) -> Json:
    """Name, Hub id (None if it has none) and carried-over metadata of the model that was pruned.

    The card is read from the model's folder, the Hub's cache, or the Hub. Where it is out of reach, the metadata is left out.

    Args:
        name_or_path: `config._name_or_path` of the dense model.
        hub_id: its id on the Hub, where the user knows it.

    Raises:
        ValueError: that can be no id.
    """
    path = Path(name_or_path) if name_or_path else None
    local = path is not None and path.is_dir()
    if hub_id is not None and not _is_id(hub_id):
        raise ValueError(f"`{hub_id}` is no id of a model on the Hub. Write it like `someone/small-llama`.")
    if hub_id is None and name_or_path:
        hub_id = _id_from_cache_path(Path(name_or_path)) if local else _cached_id(name_or_path)
    name = hub_id or (path.resolve().name if path is not None else None)
    metadata = (_read_metadata(path / "README.md") if local and path is not None else {}) or _hub_metadata(hub_id)
    return {"name": name, "hub_id": hub_id, **metadata}


def _cached_id(name: str) -> str | None:
    """`name` if a model of that id was loaded from the Hub; a name alone may as well be a folder that has gone since."""
    if not _is_id(name):
        return None
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    return name if folder.is_dir() else None


def _is_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _id_from_cache_path(path: Path) -> str | None:
    """The id of a snapshot folder of the Hub's cache, `models--OWNER--NAME/snapshots/COMMIT`."""
    parts = path.absolute().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    name = "/".join(parts[-3].split("--")[1:])
    return name if _is_id(name) else None


def _hub_metadata(hub_id: str | None) -> Json:
    if hub_id is None:
        return {}
    cached = try_to_load_from_cache(hub_id, "README.md")
    if isinstance(cached, str):
        return _read_metadata(Path(cached))
    try:
        card = model_info(hub_id, timeout=_SECONDS).card_data
    except (OSError, HTTPError, HFValidationError):  # no network, no such model: its metadata is unknown, which is no error
        return {}
    return {} if card is None else _carried(card.to_dict())


def _read_metadata(card: Path) -> Json:
    """What is carried over from a README.md, of which no more than its beginning is read: it is someone else's text."""
    if not card.is_file():
        return {}
    with card.open("rb") as file:
        block = REGEX_YAML_BLOCK.search(file.read(_MOST).decode("utf-8-sig", errors="replace"))
    try:
        metadata = load_yaml(block[2]) if block else {}
    except ValueError:  # someone else's card that does not parse
        return {}
    return _carried(metadata) if isinstance(metadata, dict) else {}


def _carried(metadata: Json) -> Json:
    """The values that are words, or lists of them; others are none that the Hub knows."""
    found: Json = {}
    for key in CARRIED_OVER:
        value = metadata.get(key)
        listed = [_word(word) for word in value[:100] if isinstance(word, str)] if isinstance(value, list) else None
        found[key] = listed if listed is not None else _word(value) if isinstance(value, str) else None
    return {key: value for key, value in found.items() if value}


def _word(text: str) -> str:
    return " ".join(text[:300].split())
