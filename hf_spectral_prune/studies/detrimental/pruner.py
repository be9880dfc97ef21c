"""DetrimentalNeuronPruner: attribute, search, cut; then measure and save."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.utils import logging

from ...checks import check_push
from ...data.texts import CalibrationData
from ...evaluation.figures import num_parameters
from ...models.families import family_of, max_tokens, module_of, unit_groups
from ...models.families.llama import FAMILIES as LLAMA_FAMILIES
from ...models.loading import source_of, without_quantisation_marks
from ...models.losses import check_gradients, predicts_next_token
from ...planning import choose_units
from ...saving.output import PruningOutput, StepCosts, circumstances
from ...saving.place import check_output_dir, names_in
from ...saving.trainer_methods import TrainerMethods
from ...surgery import apply_plan, fingerprint, settle_class
from ...surgery.plan import PruningPlan
from ...utils.environment import library_versions
from ...utils.files import num_bytes
from ...utils.option_values import at_fixed_paths
from ...utils.types import Json, Row
from .arguments import DetrimentalArguments
from .attribution import attribute
from .report import Findings, notes, report
from .scoring import Outcome, Questions, evaluate, tokenise
from .search import best_point, grid_search, num_removed
from .tasks import Example, examples_from_rows

logger = logging.get_logger(__name__)


class DetrimentalNeuronPruner(TrainerMethods):
    """Removes the FFN neurons of one layer that make a causal language model confident without making it right.

    The method of "Detecting and Pruning Prominent but Detrimental Neurons in Large Language Models" (arXiv:2507.09185): on
    about ten labelled examples, neurons are ranked by integrated gradients of the largest logit; a grid over layers and
    shares is scored by accuracy on the same examples, and the best point's neurons are removed. Where no point beats the
    whole model there, nothing is removed, and a note says so.

    Args:
        model: a causal language model with gated FFNs (Llama and its kin); it is changed in place.
        args: options.
        adaptation_examples: `Example`s, or rows with `prompt`, `choices` and `label`.
        held_out_examples: the same, to measure accuracy on; none of them may be an adaptation example.
        processing_class: the tokenizer.
        callbacks: transformers' TrainerCallbacks; the run is one step.

    Raises:
        ValueError: a model or an example that cannot be worked with; told before any work.

    Example:
        ```python
        examples = read_examples("questions.jsonl")
        pruner = DetrimentalNeuronPruner(model, DetrimentalArguments(output_dir="cria"), examples[:10], examples[10:], tokenizer)
        print(pruner.prune().metrics)
        pruner.save_model()
        ```
    """

    args: DetrimentalArguments
    processing_class: PreTrainedTokenizerBase | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: DetrimentalArguments | None = None,
        adaptation_examples: Sequence[Example | Row] = (),
        held_out_examples: Sequence[Example | Row] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
    ) -> None:
        self.args = at_fixed_paths(args or DetrimentalArguments(), "output_dir")
        self.model = without_quantisation_marks(model)
        self.base_model = source_of(model.config)
        self.processing_class = processing_class
        check_model(model)
        self.layers = _grid_layers(model, self.args)
        if processing_class is None:
            raise ValueError("`processing_class` is missing: the examples are text. Pass the model's tokenizer.")
        adaptation = _as_examples(adaptation_examples, "the list of adaptation examples")
        held_out = [] if held_out_examples is None else _as_examples(held_out_examples, "the list of held-out examples")
        shared = set(adaptation) & set(held_out)
        if shared:
            raise ValueError(
                f"{len(shared)} of the held-out examples are adaptation examples too (e.g. {min(x.where for x in shared)}), so "
                "accuracy on them would promise nothing. Take them out."
            )
        self.adaptation = self._tokenise(adaptation)
        self.held_out = self._tokenise(held_out) if held_out else None
        check_push(model, self.args)
        self.data_collator = self.compute_metrics = self.preprocess_logits_for_metrics = None
        self.eval_data, self.saved_to, self._place = None, None, ExitStack()
        self._begin_callbacks(callbacks, max_steps=1)
        self.costs = StepCosts()
        self.output: PruningOutput | None = None
        self._replaced: frozenset[str] | None = None  # what may go from the folder when the result comes
        # What the examples are, for the report; whoever drew them may say more.
        self.protocol: Json = {
            name: {"source": "labelled examples given by the caller", "num_sequences": len(questions)}
            for name, questions in (("adaptation", self.adaptation), ("held_out", self.held_out))
            if questions is not None
        }

    def prune(self) -> PruningOutput:
        """Finds and removes the neurons; measures held-out accuracy before and after.

        Raises:
            ValueError: the model's scores are not finite, or the folder of the result cannot be written.
        """
        args = self.args
        if args.output_dir is not None:
            check_output_dir(args.output_dir, args.overwrite_output_dir, self.base_model)
            self._replaced = names_in(args.output_dir)
        set_seed(args.seed)
        before = self._measure("before")
        self._event("on_train_begin")
        self._event("on_step_begin")
        with self.costs.of("attribution"):
            contexts, remark = self._contexts()
            attributions = attribute(
                self.model,
                contexts,
                self.layers,
                weights=args.weights,
                steps=args.num_steps,
                max_steps=args.max_steps,
                tolerance=args.completeness_tolerance,
                batch_tokens=args.batch_tokens,
                progress=not args.disable_tqdm,
            )
        with self.costs.of("search"):
            points = grid_search(
                self.model,
                {layer: attribution.values for layer, attribution in attributions.items()},
                self.adaptation,
                args.shares,
                round_to=args.round_to,
                normalisation=args.normalisation,
                progress=not args.disable_tqdm,
            )
        found = Findings(attributions, points, best_point(points), len(self.adaptation), args.weights, len(contexts), remark)
        plan, size = self._plan(found), num_bytes(self.model)
        apply_plan(self.model, plan)
        self.model = self.callback_handler.model = settle_class(self.model)
        self.state.global_step, self.state.epoch = 1, 1.0
        self._event("on_step_end")
        self._event("on_train_end")
        return self._finish(found, plan, size, before, self._measure("after"))

    train = prune  # by Trainer's name

    def evaluate(self, eval_dataset: object = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Accuracy of the model as it stands, on the held-out examples or on others (`Example`s or rows); logs it.

        Raises:
            ValueError: there are no examples, or one cannot be worked with.
        """
        questions = self.held_out
        given: Any = eval_dataset
        if given is not None:
            questions = self._tokenise(_as_examples(given, "the list of examples to evaluate on"))
        if questions is None:
            raise ValueError("`evaluate()` has no examples. Pass `eval_dataset` to it, or `held_out_examples` to the pruner.")
        metrics = {f"{metric_key_prefix}_accuracy": self._outcome(questions).accuracy}
        self.log(metrics)
        self._event("on_evaluate", metrics=metrics)
        return metrics

    def _data(self, source: object, name: str) -> CalibrationData | None:
        raise ValueError("`predict()` is for data sets of one kind of row, and these are labelled choices. Use `evaluate()`.")

    def _contexts(self) -> tuple[tuple[Tensor, ...], str | None]:
        """Contexts that attributions are averaged over, and a note where they are not those that were asked for."""
        contexts = self.adaptation.contexts
        if self.args.attribute_on == "all":
            return contexts, None
        correct = self._outcome(self.adaptation).correct
        wrong = tuple(context for context, right in zip(contexts, correct, strict=True) if not right)
        if wrong:
            return wrong, None
        return (
            contexts,
            f"The whole model answers all {len(contexts)} adaptation examples rightly: attribution is on all of them.",
        )

    def _outcome(self, questions: Questions) -> Outcome:
        return evaluate(self.model, questions, self.args.normalisation, progress=not self.args.disable_tqdm)

    def _tokenise(self, examples: Sequence[Example]) -> Questions:
        assert self.processing_class is not None
        positions = max_tokens(self.model.config)
        return tokenise(examples, self.processing_class, max_positions=positions, batch_tokens=self.args.batch_tokens)

    def _measure(self, when: str) -> Outcome | None:
        if self.held_out is None:
            return None
        with self.costs.of("evaluation"):
            found = self._outcome(self.held_out)
        self.log({f"{when}_accuracy": found.accuracy})
        return found

    def _plan(self, found: Findings) -> PruningPlan:
        groups = unit_groups(self.model, ["ffn"])
        scores = {group.key: torch.zeros(group.size, dtype=torch.float64) for group in groups}
        sizes = {group.key: group.size for group in groups}
        best, width = found.best, None
        if best.layer is not None:
            key = f"layers.{best.layer}.ffn"
            scores[key] = -found.attributions[best.layer].values
            width = sizes[key] = sizes[key] - best.removed
        return choose_units(
            groups,
            scores,
            sizes,
            num_parameters(self.model),
            model_type=self.model.config.model_type,
            layout="per_layer",
            criterion="detrimental",
            criterion_args={"layer": best.layer, "share": best.share},
            seed=self.args.seed,
            fingerprint=fingerprint(self.model),
            notes=tuple(notes(found, width, self.args.completeness_tolerance)),
            versions=library_versions(),
        )

    def _finish(
        self, found: Findings, plan: PruningPlan, size: int, before: Outcome | None, after: Outcome | None
    ) -> PruningOutput:
        metrics: dict[str, float] = {
            "parameters_before": plan.parameters_before,
            "parameters_after": num_parameters(self.model),
            "reduction": plan.reduction,
        }
        if before is not None and after is not None:
            metrics |= {"before_accuracy": before.accuracy, "after_accuracy": after.accuracy}
        happened = circumstances(self.costs, self.base_model)
        figures = report(found, plan, num_parameters(self.model), before, after, self.protocol, self.args, happened)
        figures.size_on_disk_before = size
        for note in plan.notes:
            logger.warning(note)
        self.output = PruningOutput(self.model, plan, metrics, figures)
        return self.output


def check_model(model: PreTrainedModel) -> None:
    """Tells of a model that the method does not work for, before any work.

    Raises:
        ValueError: another family or task, an activation that is not zero at zero, quantised weights, or no gradients.
    """
    family = family_of(model.config)
    if family not in LLAMA_FAMILIES or not predicts_next_token(model):
        known = ", ".join(f"`{other.name}`" for other in LLAMA_FAMILIES)
        raise ValueError(
            f"`{type(model).__name__}` has no gated FFN behind which next tokens are predicted. Detrimental neurons are found "
            f"in causal language models of the families {known}."
        )
    unit_groups(model)
    check_gradients(model, otherwise="")
    activation = module_of(model, 0, "mlp").act_fn
    if float(activation(torch.zeros(1))) != 0:
        raise ValueError(
            f"The activation `{type(activation).__name__}` is not zero at zero, so a zeroed gate row would not switch its neuron "
            "off. Use a model with silu, gelu or relu."
        )


def _grid_layers(model: PreTrainedModel, args: DetrimentalArguments) -> list[int]:
    """The layers to try; told before any work if there is none of that number, or if a share would empty or spare one."""
    groups = {group.layer: group for group in unit_groups(model, ["ffn"])}
    layers = sorted(groups) if args.layers is None else sorted(args.layers)
    for layer in layers:
        if layer not in groups:
            raise ValueError(f"`layers` names layer {layer}, but the model has the layers 0 to {len(groups) - 1}.")
        for share in args.shares:
            num_removed(groups[layer], share, args.round_to)
    return layers


def _as_examples(rows: Sequence[Example | Row], name: str) -> list[Example]:
    given = list(rows)
    examples = [row for row in given if isinstance(row, Example)]
    if examples and len(examples) == len(given):
        return examples
    return examples_from_rows(given, name=name)  # type: ignore[arg-type]
