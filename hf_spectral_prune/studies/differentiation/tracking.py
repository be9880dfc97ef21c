"""NDITrackingCallback: the neural differentiation of every unit at intervals of a training run, as curves of the layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ...calibration import collect_moments
from ...criteria import collect_statistics, make_criterion
from ...criteria.ndi import NeuralDifferentiation
from ...criteria.score import group_data
from ...data.images import build_images
from ...data.texts import CalibrationData, build_calibration
from ...models.distributed import of_first_process, shards_weights, whole_copy
from ...models.families import unit_groups
from ...models.families.groups import is_vision
from ...models.losses import Batch, check_targets
from ...spectral import correlation
from ...trainer.scoring import LoggingCallback
from ...utils.files import write_text
from ...utils.types import Json, ProcessingClass

logger = logging.get_logger(__name__)

# Name of the curves in the Trainer's `output_dir`.
CURVES_FILE = "ndi_curves.json"


@dataclass(frozen=True)
class GroupIndex:
    """The differentiation of one unit group at one moment.

    Attributes:
        ndi: (n_units,) index of every unit (eq. 22). Its parts are normalised over the network, so that it says how units and
            layers stand to each other at this moment; the mean over the network hardly moves.
        correlation: mean of the squared correlation of outputs over pairs of channels of different units, 0 to 1.
        informativeness: mean entropy of the units' outputs over the layer's bins, 0 to 1.
        curvature: mean diagonal of the loss's Hessian over the units' weights, nats a position per squared weight.
    """

    ndi: Tensor
    correlation: float
    informativeness: float
    curvature: float

    def figures(self) -> dict[str, float]:
        """Plain numbers: the number of units, mean and quartiles of their index, and the three means."""
        low, high = self.ndi.quantile(torch.tensor([0.25, 0.75], dtype=self.ndi.dtype)).tolist()
        means = {name: float(getattr(self, name)) for name in ("correlation", "informativeness", "curvature")}
        return {"units": len(self.ndi), "ndi": float(self.ndi.mean()), "ndi_low": low, "ndi_high": high, **means}


def measure_ndi(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    criterion: NeuralDifferentiation | None = None,
    units: Sequence[str] | None = None,
    seed: int = 42,
) -> dict[str, GroupIndex]:
    """{group key: differentiation} of a model as it stands (Wang and Jiang, CVPR 2026, eq. 5-22); weights do not change.

    Args:
        batches: calibration batches that make a loss.
        criterion: options of the index; the defaults of `ndi` if None.
        units: kinds of unit; None for all.

    Raises:
        ValueError: unknown family or kind of unit, or a loss that cannot be made or differentiated.
    """
    criterion = criterion or NeuralDifferentiation()
    groups = unit_groups(model, None if units is None else list(units))
    moments = collect_moments(model, groups, batches, spatial=replace(criterion.positions, seed=seed), progress=False)
    statistics = collect_statistics(model, groups, criterion, batches, moments, seed=seed, progress=False)
    data = [group_data(model, group, moments[group.key], seed, statistics[group.key]) for group in groups]
    indices = criterion.indices([criterion.components(item) for item in data])
    return {
        item.group.key: GroupIndex(
            ndi=index,
            correlation=_shared_energy(correlation(item.after()[1], item.after()[0]), item.group.channels_per_unit),
            informativeness=float(item.statistics["informativeness"].mean()),
            curvature=float(item.statistics["curvature"].mean()),
        )
        for item, index in zip(data, indices, strict=True)
    }


def _shared_energy(matrix: Tensor, channels_per_unit: int) -> float:
    """Mean squared entry (n, n) over pairs of channels of different units; 0 for a single unit."""
    unit = torch.arange(len(matrix), device=matrix.device) // channels_per_unit
    others = unit[:, None] != unit
    return float(matrix[others].square().mean()) if bool(others.any()) else 0.0


class NDITrackingCallback(LoggingCallback):
    """Measures the NDI of every unit at intervals of steps, logs the layers' means and keeps their curves.

    Before the first step, every `interval_steps` steps and after the last one. Means go to the Trainer's loggers as `ndi/<group>`
    if the callback was attached by `attach`, else to `state.log_history` only. All figures are written to `ndi_curves.json`
    in `output_dir` at every point. A resumed run goes on with the file's curves up to the checkpoint's step. Training itself is
    not touched: the weights come out the same as without the callback.

    Over several processes the first one measures while the others wait; units that a pruning callback masks there are measured
    as silent ones.

    Args:
        calibration_dataset: as for `SpectralPruningCallback`, or images as `build_images` takes them for models that read
            those. It needs targets, since curvature is of the loss.
        interval_steps: optimizer steps between measurements.
        processing_class: tokenizer or image processor for raw data; the Trainer's by default.
        num_samples: sequences or images that are taken from raw data (ready batches are all used). Each measurement costs
            three forward passes over them, and two backward passes a probe on a few.
        units: kinds of unit; None for all the family has.
        criterion_args: options of the criterion `ndi`.

    Attributes:
        points: the curves, oldest first: step, epoch, and the figures of every group (see `GroupIndex`).
        indices: {group key: `GroupIndex`} of the last measurement, unit by unit.

    Raises:
        ValueError: at construction: an interval or a number of samples below 1, unknown options. At the Trainer's
            construction: an unknown family, no calibration data, data without targets.
    """

    def __init__(
        self,
        calibration_dataset: Any = None,
        interval_steps: int = 100,
        processing_class: ProcessingClass | None = None,
        *,
        num_samples: int = 32,
        units: Sequence[str] | None = None,
        criterion_args: Json | None = None,
    ) -> None:
        for name, value in (("interval_steps", interval_steps), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}; it must be at least 1.")
        criterion = make_criterion("ndi", criterion_args)
        assert isinstance(criterion, NeuralDifferentiation)
        self.criterion = criterion
        self.calibration_dataset = calibration_dataset
        self.interval_steps = interval_steps
        self.processing_class = processing_class
        self.num_samples = num_samples
        self.units = None if units is None else list(units)
        self.points: list[Json] = []
        self.indices: dict[str, GroupIndex] = {}
        self._calibration: CalibrationData | None = None

    # ---- Trainer's events

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        processing_class: ProcessingClass | None = None,
        **kwargs: object,
    ) -> None:
        """Measures the model as it is, or takes up the curves of the run that is resumed."""
        assert model is not None
        self.check(args, model, processing_class)
        self.points = [] if state.global_step == 0 else _read(_file(args), state.global_step)
        if state.global_step == 0:
            self._measure(model, args, state, control)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: object,
    ) -> None:
        """Measures where the interval says so."""
        if state.global_step % self.interval_steps == 0:
            self._measure(model, args, state, control)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: object,
    ) -> None:
        """Measures the model that training ended with, unless the last step did."""
        if not self.points or self.points[-1]["step"] != state.global_step:
            self._measure(model, args, state, control)

    # ---- the measurement

    def check(self, args: TrainingArguments, model: PreTrainedModel, processing_class: ProcessingClass | None) -> None:
        """Raises what would make the measurement fail later."""
        unit_groups(model, self.units)
        if self.calibration_dataset is None:
            raise ValueError("There is no calibration data, and NDI is measured on it. Pass `calibration_dataset`.")
        if self._calibration is None:
            self._calibration = _calibration(self, model, self.processing_class or processing_class)
        for batch in self._calibration.batches:
            check_targets(model, batch)

    def _measure(
        self, model: PreTrainedModel | None, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        assert model is not None  # a Trainer gives it
        self.indices = self._indices(model, args.seed)
        figures = {key: index.figures() for key, index in self.indices.items()}
        self.points.append({"step": state.global_step, "epoch": state.epoch or 0.0, "groups": figures})
        if state.is_world_process_zero:
            _file(args).parent.mkdir(parents=True, exist_ok=True)
            content = {"criterion_args": asdict(self.criterion), "points": self.points}
            write_text(_file(args), json.dumps(content, indent=1) + "\n")
        means = {f"ndi/{key}": values["ndi"] for key, values in figures.items()}
        self.log(means, state, control)

    def _indices(self, model: PreTrainedModel, seed: int) -> dict[str, GroupIndex]:
        assert self._calibration is not None
        batches = self._calibration.batches
        if AcceleratorState().distributed_type == DistributedType.NO:
            return measure_ndi(model, batches, self.criterion, self.units, seed)
        target: Any = whole_copy(model) if shards_weights(model) else model
        return of_first_process(lambda: measure_ndi(target, batches, self.criterion, self.units, seed))


def _calibration(callback: NDITrackingCallback, model: PreTrainedModel, processing_class: Any) -> CalibrationData:
    source, number = callback.calibration_dataset, callback.num_samples
    if isinstance(source, CalibrationData):
        return source
    if is_vision(model):
        return build_images(source, processing_class, model.config, num_samples=number, name="calibration_dataset")
    return build_calibration(source, processing_class, num_samples=number, name="calibration_dataset")


def _file(args: TrainingArguments) -> Path:
    return Path(str(args.output_dir)) / CURVES_FILE


def _read(file: Path, last_step: int) -> list[Json]:
    """Points of an earlier run up to a step; none, with a warning, where the file is not there.

    Raises:
        ValueError: the file does not hold curves.
    """
    if not file.is_file():
        logger.warning(f"`{file}` does not exist, so the NDI curves begin anew at step {last_step}.")
        return []
    try:
        points = json.loads(file.read_text(encoding="utf-8"))["points"]
        return [point for point in points if point["step"] <= last_step]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"`{file}` does not hold NDI curves ({error!r}). Move it away to begin anew.") from None
