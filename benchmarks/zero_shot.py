"""Zero-shot accuracy by lm_eval on tasks whose data lie in local files, for benchmarks on machines without a connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lm_eval.tasks
import yaml
from transformers import PreTrainedModel

from hf_spectral_prune.arguments import LmEvalArguments
from hf_spectral_prune.evaluation.tasks import task_figures


@contextmanager
def local_tasks(files: Mapping[str, Path]) -> Iterator[Path]:
    """A folder with lm_eval's own tasks of these names, each reading its rows from a JSON lines file; for `include_path`."""
    own = Path(lm_eval.tasks.__file__).parent
    with TemporaryDirectory() as name:
        folder = Path(name)
        for task, file in files.items():
            local = {
                "include": str(own / task / f"{task}.yaml"),
                "task": task,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"validation": str(file.resolve())}, "cache_dir": str(folder / "cache")},
                "training_split": None,
            }
            (folder / f"{task}.yaml").write_text(yaml.safe_dump(local))
        yield folder


def zero_shot(
    model: PreTrainedModel, tokenizer: Any, files: Mapping[str, Path], items: int, batch_size: int
) -> dict[str, dict[str, float]]:
    """{task: {metric: value, metric and ` stderr`: its standard error}} over the first `items` rows of every file."""
    with local_tasks(files) as folder:
        options = LmEvalArguments(lm_eval=list(files), lm_eval_limit=items, lm_eval_include_path=str(folder))
        found = task_figures(model, tokenizer, options, batch_size=batch_size, progress=False)
    return {
        task: one.figures | {f"{metric} stderr": value for metric, value in one.stderr.items()} for task, one in found.items()
    }
