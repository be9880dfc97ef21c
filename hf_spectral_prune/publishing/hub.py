"""Pushes a saved folder to the Hub: checked first, in one commit, going on where it broke off, the token never shown."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..surgery.plan import PruningPlan
from ..utils.words import in_a_line, named
from .card.write import ExistingCard, build_card, combined, read_card, readme_text
from .contents import is_written
from .saved_folder import CONFIG, PLAN, README, SavedFolder, check_fit_to_publish, read_folder

logger = logging.get_logger(__name__)

# Times that a push is tried where the connection drops or the Hub fails, and the seconds before the second; they double.
# The client itself also repeats single requests.
ATTEMPTS, FIRST_WAIT = 4, 2.0
# Never pushed, and not worth a word: hidden files, logs and checkpoints of a run, half-written files, pickles.
_LEFT_OUT = (".*", "runs", "checkpoint-*", "__pycache__", "*.tmp", "*.partial", "*.bin", "*.pt", "*.pth", "*.pkl")
# Files that transformers would load beside or instead of the new ones, if they stayed from an earlier push.
_STALE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|cria_\w+\.py|narrowing\.py")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt")
_STATUS_TO_RETRY = {408, 412, 429}
T = TypeVar("T")


@dataclass(frozen=True)
class Repo:
    """A model repo on the Hub that may be written to.

    Attributes:
        api: client that carries the token.
        id: OWNER/NAME.
    """

    api: HfApi
    id: str


@dataclass(frozen=True)
class Contents:
    """What a repo holds at one commit.

    Attributes:
        commit: its hash; None for a repo without any.
        files: paths.
        plan: the plan of the pruned model that lies there, if one does.
        readme: text of its README.md.
    """

    commit: str | None
    files: frozenset[str]
    plan: PruningPlan | None
    readme: str | None

    def holds_another_model(self, fingerprint: str | None) -> bool:
        """Whether a model lies there that was not pruned from the weights with this fingerprint."""
        if self.plan is not None:
            return fingerprint is None or self.plan.fingerprint != fingerprint
        return any(name == CONFIG or name.endswith(_WEIGHTS) for name in self.files)


class _Interrupted(ConnectionError):
    """A failure that another attempt may get past."""


def push_folder(
    folder: str | Path,
    repo_id: str | None,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    overwrite: bool = False,
) -> CommitInfo:
    """Pushes a folder that `save_model()` wrote, in one commit: weights, config, tokenizer, plan, report, card, plots, code.

    What else lies there stays behind, and is named.

    Files of an earlier push that would be loaded beside the new ones are deleted in the same commit. A push that breaks off
    is tried again up to 4 times in all; files that the Hub has already are not sent again, in another process neither.

    Args:
        repo_id: OWNER/NAME, or NAME for a repo of the token's owner. It is made if it does not exist.
        token: of the Hub; by default the one of `hf auth login` or of `HF_TOKEN`.
        private: make a new repo private; None takes the owner's default.
        overwrite: replace another model in the repo, with all its files; its history keeps them.

    Returns:
        The commit, which is its address too.

    Raises:
        ValueError: the folder is not whole or was changed since its self-check, or the repo holds another model.
        FileNotFoundError: it is not a folder of a pruned model.
        OSError: the Hub refused or could not be reached (says what to do); one line, without the token.
    """
    saved = read_folder(folder)
    check_fit_to_publish(saved)
    local = read_card(readme_text(saved.path), saved.path / README)
    build_card(saved, str(repo_id), local)  # a missing figure is told before the first request
    files = files_to_push(saved)
    repo = open_repo(repo_id, token, private)
    message = commit_message or "Upload a pruned model"

    def commit() -> CommitInfo:
        contents = look_into(repo)
        check_free(repo, contents, saved.plan.fingerprint, overwrite)
        operations = _operations(repo, saved, files, local, contents, overwrite)
        with _plain_errors(repo):
            info = repo.api.create_commit(repo.id, operations, commit_message=message, parent_commit=contents.commit)
        return info

    return _with_retries(commit, repo, saved.path)


def open_repo(repo_id: str | None, token: str | None = None, private: bool | None = None) -> Repo:
    """Makes sure that the repo exists and that the token may write to it.

    Raises:
        ValueError: no repo id or none that can be, no token, or a public repo where a private one is asked for.
        OSError: the Hub refused or could not be reached.
    """
    if not repo_id:
        raise ValueError("There is no repo to push to. Set `hub_model_id`, e.g. `your-name/cria-llama`.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = in_a_line(error)
        raise ValueError(
            f"`hub_model_id` `{repo_id}` cannot be a repo: {reason}. Write it like `your-name/cria-llama`."
        ) from None
    token = token or get_token()
    if not token:
        raise ValueError("There is no token for the Hub. Run `hf auth login`, or set `HF_TOKEN` or `hub_token`.")
    api = HfApi(token=token, library_name="hf_spectral_prune", library_version=version("hf_spectral_prune"))
    repo = Repo(api, repo_id)
    with _plain_errors(repo):
        repo = Repo(api, api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        api.auth_check(repo.id, write=True)
        is_private = api.model_info(repo.id).private
    if private and not is_private:
        raise ValueError(
            f"`{repo.id}` exists and is public, but `hub_private_repo` is set. Make it private in its settings, or leave "
            "`hub_private_repo` out."
        )
    return repo


def look_into(repo: Repo) -> Contents:
    """What the repo holds now.

    Raises:
        OSError: the Hub refused or could not be reached.
    """
    with _plain_errors(repo):
        info = repo.api.model_info(repo.id)
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())
        plan, readme = (_download(repo, name, info.sha) if name in files else None for name in (PLAN, README))
    try:
        return Contents(info.sha, files, None if plan is None else PruningPlan.from_json(plan), readme)
    except ValueError:  # not a plan of ours
        return Contents(info.sha, files, None, readme)


def _download(repo: Repo, name: str, commit: str | None) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        return Path(repo.api.hf_hub_download(repo.id, name, revision=commit, local_dir=scratch)).read_text(encoding="utf-8-sig")


def check_free(repo: Repo, contents: Contents, fingerprint: str | None, overwrite: bool) -> None:
    """Refuses a repo that holds another model.

    Args:
        fingerprint: of the base model's weights, as in the plan; another pruning of the same base is an update.

    Raises:
        ValueError: it does, and `overwrite` is off.
    """
    if overwrite or not contents.holds_another_model(fingerprint):
        return
    what = "a model that was pruned from other weights" if contents.plan is not None else f"a model without a `{PLAN}`"
    raise ValueError(
        f"`{repo.id}` holds another model ({what}). Choose another `hub_model_id`, or replace it with `cria push FOLDER "
        f"--hub_model_id {repo.id} --overwrite`."
    )


def _operations(
    repo: Repo, saved: SavedFolder, paths: Sequence[Path], local: ExistingCard, contents: Contents, overwrite: bool
) -> list[CommitOperationAdd | CommitOperationDelete]:
    another = contents.holds_another_model(saved.plan.fingerprint)
    remote = ExistingCard() if another else read_card(contents.readme, f"{README} of {repo.id}")
    card = build_card(saved, repo.id, _joined(local, remote, repo, saved, overwrite))
    files = {path.relative_to(saved.path).as_posix(): path for path in paths}
    additions = [CommitOperationAdd(name, path) for name, path in files.items() if name != README]
    stale = sorted(
        name for name in contents.files - {*files, README, ".gitattributes"} if another or _STALE.fullmatch(name) is not None
    )
    return [*additions, CommitOperationAdd(README, card.encode()), *(CommitOperationDelete(name) for name in stale)]


def _joined(local: ExistingCard, remote: ExistingCard, repo: Repo, saved: SavedFolder, overwrite: bool) -> ExistingCard:
    """The card to update: the folder's, with what the repo's has more. No text is lost without being told."""
    metadata = combined(remote.metadata, local.metadata)
    theirs_only = bool(remote.own_text) and not local.own_text
    if remote.own_text and local.own_text and remote.own_text != local.own_text and not overwrite:
        raise ValueError(
            f"The {README} of `{repo.id}` and that of `{saved.path}` both have text of their own. Put what should stay into the "
            "folder's and push with `--overwrite`."
        )
    return replace(remote if theirs_only else local, metadata=metadata, order=(*remote.order, *local.order))


def files_to_push(saved: SavedFolder) -> list[Path]:
    """Files that belong on the Hub, sorted: what this package or `save_pretrained` wrote into the folder, and nothing else.

    Raises:
        ValueError: one of them is a link out of the folder.
    """
    root = saved.path.resolve()
    written = {*(saved.report.files or ()), *(saved.report.written or ())}
    folders = {name.partition("/")[0] for name in written if "/" in name} | {"plots"}
    found: list[Path] = []
    others: list[Path] = []
    for place, inner, names in os.walk(saved.path):  # goes into no link
        inner[:] = sorted(name for name in inner if not _is_left_out(name))
        links = [name for name in inner if os.path.islink(Path(place) / name)]
        for path in (Path(place) / name for name in (*sorted(names), *links)):
            name = path.relative_to(saved.path).as_posix()
            if _is_left_out(path.name):
                continue
            belongs = name in folders if path.name in links else name in written or is_written(name)
            if belongs and not path.resolve().is_relative_to(root):
                raise ValueError(f"`{path}` is a link out of the folder, and pushing follows none. Put the file itself there.")
            (found if belongs and path.is_file() else others).append(path)
    if others:
        behind = named([path.relative_to(saved.path).as_posix() for path in others])
        logger.warning(f"Left behind, as no file of a saved model: {behind}.")
    return found


def _is_left_out(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _LEFT_OUT)


# ---- failures


def _with_retries(attempt: Callable[[], T], repo: Repo, folder: Path) -> T:
    wait = FIRST_WAIT
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except _Interrupted as error:
            if number == ATTEMPTS:
                raise OSError(
                    f"The push to `{repo.id}` broke off {ATTEMPTS} times: {error} What has arrived stays there: go on with "
                    f"`cria push {folder} --hub_model_id {repo.id}`."
                ) from None
            logger.warning(f"The push to `{repo.id}` broke off: {error} Trying again in {wait:g} s ({number} of {ATTEMPTS - 1}).")
        time.sleep(wait)
        wait *= 2
    raise AssertionError("unreachable")


@contextmanager
def _plain_errors(repo: Repo) -> Iterator[None]:
    """Tells whatever the client raises in one line, with the token taken out."""
    try:
        yield
    except Exception as error:  # the upload has several back ends with errors of their own; none may show the token
        kind, text = _explained(error, repo)
        raise kind(text.replace(str(repo.api.token), "<token>")) from None


def _explained(error: Exception, repo: Repo) -> tuple[type[OSError], str]:
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    words = in_a_line(causes[-1] if status is None else error)
    if status == 401:
        return OSError, "The Hub refused the token (401). Run `hf auth login`, or give a valid one in `HF_TOKEN` or `hub_token`."
    if status == 403:
        return OSError, (
            f"The token may not write to `{repo.id}` (403). Use one with write access to it, or another `hub_model_id`."
        )
    if status == 404:
        return OSError, f"`{repo.id}` does not exist on {repo.api.endpoint}, or the token may not see it (404)."
    if status is not None:
        again = status in _STATUS_TO_RETRY or status >= 500
        return (_Interrupted if again else OSError), f"The Hub answered with an error: {words}."
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return OSError, "`HF_HUB_OFFLINE` is set, so nothing can be pushed. Unset it."
    # Uploads end in a RuntimeError, whatever broke them off.
    if any(isinstance(cause, (HTTPError, ConnectionError)) for cause in causes) or isinstance(error, RuntimeError):
        return _Interrupted, f"{repo.api.endpoint} cannot be reached ({words})."
    return OSError, f"The push to `{repo.id}` failed: {words}."
