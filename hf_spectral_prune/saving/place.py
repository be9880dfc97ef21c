"""The place of a result: checked and reserved before the work, swept of what killed runs left, and taken at the end."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLock, Timeout

from ..publishing.card.write import read_card, readme_text
from ..publishing.contents import is_model_file
from ..publishing.saved_folder import README
from ..utils.files import LOCK_PATIENCE
from . import checkpoint

_LOGS = "runs"  # where loggers write by default


# ---- before the work


def check_output_dir(
    folder: str | Path, overwrite: bool, source: str | Path | None = None, inputs: Sequence[str | Path] = ()
) -> None:
    """Refuses a folder that holds something else than checkpoints of a pruning run, or that cannot be made or replaced.

    Args:
        source: folder or file (or name on the Hub) of the model that is pruned.
        inputs: files and folders that the run reads besides.

    Raises:
        ValueError: the folder is not empty, is a file or a mount point, is in a folder that cannot be written to, is or holds
            what the run reads, or has a README.md that cannot be read (its text will be kept).
    """
    folder = Path(folder)
    _check_replaceable(folder)
    for read in [*([source] if source else []), *inputs]:
        if _holds(folder, Path(read)):
            what = "the model to prune" if read == source else "what this run reads"
            raise ValueError(
                f"`output_dir` `{folder}` holds {what} (`{read}`), which would go when the folder is replaced. Name another "
                "folder."
            )
    if overwrite:
        read_card(readme_text(folder), folder / README)
    if overwrite or not folder.exists():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name != _LOGS and not checkpoint.is_own(path))
    if others:
        raise ValueError(
            f"`output_dir` `{folder}` is not empty (it has `{others[0]}`). Name another folder or set `overwrite_output_dir`."
        )


def _holds(folder: Path, read: Path) -> bool:
    """Whether something that exists is the folder itself, by whatever name, or lies in it."""
    with suppress(OSError):  # a name too long for a file, ...
        if read.exists() and folder.exists():
            place = read.resolve()
            return any(os.path.samefile(folder, above) for above in (place, *place.parents))
    return False


def _check_replaceable(folder: Path) -> None:
    """A finished folder is renamed to its place, so that must be no mount point, in a folder that can be written to."""
    if folder.is_file():
        raise ValueError(f"`output_dir` `{folder}` is a file. Name a folder.")
    place = folder.resolve()
    if os.path.ismount(place):
        raise ValueError(f"`output_dir` `{folder}` is a mount point, which cannot be replaced. Name a folder inside it.")
    above = next(parent for parent in place.parents if os.path.exists(parent))
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        what = "is not writable" if above.is_dir() else "is a file"
        raise ValueError(f"`output_dir` `{folder}` cannot be made: `{above}` {what}. Name a folder elsewhere.")


@contextmanager
def reserved(folder: str | Path) -> Iterator[None]:
    """Keeps the place of a result for this process, which may reserve it again, and sweeps what killed runs left there.

    The lock lies beside the folder (`.NAME.lock`) and names process and host; that of a process that has died is taken over.

    Raises:
        ValueError: another process has it (says which), or nothing can be written there.
    """
    _check_replaceable(Path(folder))
    place = Path(folder).resolve()
    made = [parent for parent in place.parents if not parent.exists()]
    # One lock for all threads of the process, counted: what reserves a place inside of what has it already goes on.
    lock = SoftFileLock(place.with_name(f".{place.name}.lock"), is_singleton=True, thread_local=False)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_PATIENCE, poll_interval=LOCK_PATIENCE / 10)
    except Timeout:
        raise ValueError(
            f"`output_dir` `{folder}` is being written by another run ({_holder(Path(lock.lock_file))}). Name another folder, or "
            f"wait; if no such run is left, delete `{lock.lock_file}`."
        ) from None
    except OSError as error:  # some file systems say only now that they take nothing
        reason = error.strerror or " ".join(str(error).split())
        raise ValueError(f"`output_dir` `{folder}` cannot be made: {reason}. Name a folder elsewhere.") from None
    try:
        _sweep(place)
        yield
    finally:
        lock.release()
        with suppress(OSError):  # not empty: something was written
            for parent in made:
                parent.rmdir()


def _holder(lock: Path) -> str:
    words = []
    with suppress(OSError, UnicodeDecodeError):
        words = lock.read_text(encoding="utf-8").split()
    return f"process {words[0]} on `{words[1]}`" if len(words) > 1 else "its process is not known"


def _sweep(folder: Path) -> None:
    """Takes away what runs left that were killed while they wrote, and undoes or ends a replacement that broke off."""
    name = re.escape(folder.name)
    beside = [path for path in folder.parent.iterdir() if path.is_dir() and not path.is_symlink()]
    for old in (path for path in beside if re.fullmatch(rf"\.{name}\.old-\d+", path.name)):
        if os.path.lexists(folder):
            _move(old, folder, [path.name for path in old.iterdir() if not _is_ours(path) and not (folder / path.name).exists()])
            shutil.rmtree(old, ignore_errors=True)
        else:  # killed between the two renames: checkpoints and logs are in it
            old.replace(folder)
    for left in (path for path in beside if re.fullmatch(rf"\.{name}\.\w{{8}}\.partial", path.name)):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob("checkpoint-*.tmp"):
        if checkpoint.is_own(left):
            shutil.rmtree(left, ignore_errors=True)


def names_in(folder: str | Path, kept: Sequence[str | Path] = ()) -> frozenset[str]:
    """What a folder holds, by name: with `overwrite_output_dir` this, and no more, may go when the result comes.

    Args:
        kept: folders that the run itself writes; what holds them inside `folder` is left out.
    """
    place = Path(folder).resolve()
    inner = [Path(path).resolve() for path in kept]
    own = {path.relative_to(place).parts[0] for path in inner if place in path.parents}
    return frozenset(os.listdir(place)) - own - {_LOGS} if place.is_dir() else frozenset()


# ---- when the work is done


def take_place(temporary: Path, folder: Path, replaced: Collection[str]) -> None:
    """Renames a finished folder to its place. Logs and whatever came there meanwhile go along; checkpoints of the run go.

    Args:
        folder: the place, resolved.
        replaced: names there that may go.

    Raises:
        RuntimeError: something there stands in the way; says where the finished folder is kept.
    """
    try:
        along = _along(temporary, folder, replaced)
        _rename(temporary, folder, along)
    except OSError as error:
        kept = keep_beside(temporary, folder, "finished")
        reason = error.strerror or " ".join(str(error).split()).rstrip(".")
        raise RuntimeError(f"`{folder}` could not be written ({reason}); the finished model is kept in `{kept}`.") from error


def _along(temporary: Path, folder: Path, replaced: Collection[str]) -> list[str]:
    if not folder.is_dir():
        return []
    along = [path.name for path in folder.iterdir() if path.name not in replaced and not checkpoint.is_own(path)]
    if (temporary / README).exists() and README in along:
        along.remove(README)  # its text is in the new one
    for name in along:
        # A model file would be loaded beside the model, or instead of it.
        if os.path.lexists(temporary / name) or (is_model_file(name) and name != README):
            raise OSError(f"`{name}` came there while the run was on")
    return along


def _rename(temporary: Path, folder: Path, along: Sequence[str]) -> None:
    if not os.path.lexists(folder):
        temporary.replace(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        folder.replace(old)
        temporary.replace(folder)
    except BaseException:  # a signal may come between the two
        if old.is_dir() and not os.path.lexists(folder):
            old.replace(folder)
        raise
    _move(old, folder, along)
    shutil.rmtree(old, ignore_errors=True)


def _move(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        (source / name).replace(target / name)


def _is_ours(path: Path) -> bool:
    return is_model_file(path.name) or checkpoint.is_own(path)


def keep_beside(temporary: Path, folder: Path, ending: str) -> Path:
    """Renames what cannot take its place to `<folder>.<ending>`, or with a number behind it, and returns the name."""
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    places = (folder.with_name(f"{folder.name}.{ending}{number}") for number in endings)
    kept = next(place for place in places if not os.path.lexists(place))
    make_public(temporary)
    return temporary.replace(kept)


def make_public(folder: Path) -> None:
    """Gives a folder the mode of any other: temporary ones are private, which users do not expect of a model."""
    value = os.umask(0)  # the only way to read it is to set it
    os.umask(value)
    folder.chmod(0o777 & ~value)
