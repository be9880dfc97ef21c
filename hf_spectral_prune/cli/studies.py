"""What the commands of the studies have alike: checks before the work, and what they say of parts that failed."""

from __future__ import annotations

from collections.abc import Iterable

from ..studies.study_arguments import StudyArguments
from ..studies.study_folder import StudyFolder
from .arguments import RunArguments
from .inputs_text import check_named_files


def check_study(args: StudyArguments, run: RunArguments, folder: StudyFolder) -> None:
    """Tells of files that are not there, of a folder that cannot take the results, and of options that a study does not have.

    Raises:
        ValueError, FileNotFoundError: says what to set instead.
    """
    check_named_files(run)
    if args.output_dir is None:
        raise ValueError("There is no folder for the results. Set `--output_dir`.")
    if run.num_eval_samples == 0:
        raise ValueError("`num_eval_samples` is 0, so there is nothing to measure on. Set it to at least 1.")
    folder.check(args.output_dir)


def check_complete(failed: Iterable[tuple[str, str]], number: int, parts: str) -> None:
    """Raises what made parts of a study fail.

    Args:
        failed: label and error of each.
        number: of all parts, those that went well included.
        parts: what they are.

    Raises:
        RuntimeError: there are any.
    """
    found = [f"`{label}`: {error}" for label, error in failed]
    if found:
        raise RuntimeError(
            f"{len(found)} of {number} {parts} failed; the others are kept, and the next run tries these again. "
            + " ".join(dict.fromkeys(found))
        )
