"""What a model says itself, before and after: on the report, the page and the card."""

import pytest
import torch
from conftest import random_batch, tiny_encoder, tiny_model

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.samples import NEW_TOKENS, PROMPT_TOKENS, _whole_words, model_samples, paired


def test_a_decoder_goes_on_with_three_prompts_greedily(tokenizer):
    model, data = tiny_model(), CalibrationData((random_batch(4, 32, 1),), {})
    said = model_samples(model, data, tokenizer)
    assert len(said) == 3 and all(len(prompt.split()) <= PROMPT_TOKENS for prompt in said)
    assert said == model_samples(model, data, tokenizer)
    ids = data.batches[0]["input_ids"][:1, :PROMPT_TOKENS]
    with torch.inference_mode():
        best = int(model(input_ids=ids).logits[0, -1].argmax())
    words = next(iter(said.values())).split()
    assert words[:1] == tokenizer.decode([best], skip_special_tokens=True).split()[:1] and len(words) <= NEW_TOKENS


class Pieces:
    """Of ids 1, 2, 3, ..., those that 3 divides begin a word."""

    def convert_ids_to_tokens(self, ids):
        return [f"{'' if value % 3 else 'Ġ'}p{value}" for value in ids]


def test_prompts_begin_and_end_where_words_do():
    found = _whole_words(torch.arange(1, 40)[None], Pieces())[0].tolist()
    assert found[0] == 3 and (found[-1] + 1) % 3 == 0 and PROMPT_TOKENS // 2 <= len(found) <= PROMPT_TOKENS
    assert _whole_words(torch.tensor([[1, 2]]), Pieces()).tolist() == [[1, 2]]


def test_a_classifier_gives_its_label_with_its_probability(tokenizer):
    model = tiny_encoder(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    said = model_samples(model, CalibrationData((random_batch(4, 16, 1),), {}), tokenizer)
    assert len(said) == 3
    assert all(answer.startswith(("bad (", "good (")) and answer.endswith(" %)") for answer in said.values())


@pytest.mark.parametrize("model", [lambda: tiny_encoder(task="ForMaskedLM"), tiny_model])
def test_nothing_is_said_without_a_task_or_a_tokenizer(model, tokenizer):
    made = model()
    reader = tokenizer if type(made).__name__.endswith("MaskedLM") else None
    assert model_samples(made, CalibrationData((random_batch(2, 16, 1),), {}), reader) == {}


def test_only_texts_of_both_are_paired():
    assert paired({"a": "1", "b": "2"}, {"a": "3"}) == [{"text": "a", "before": "1", "after": "3"}]


@pytest.mark.usefixtures("report_pages")
def test_the_page_and_the_card_show_them_escaped(tokenizer, tmp_path):
    options = {"criterion": "magnitude", "compensation": "none", "self_check": False, "disable_tqdm": True, "round_to": 4}
    args = SpectralPruningArguments(output_dir=str(tmp_path / "out"), target_reduction=0.4, **options)
    pruner = SpectralPruner(tiny_model(), args, None, [random_batch(4, 32, 1)], tokenizer)
    output = pruner.prune()
    assert output.report.samples and {"text", "before", "after"} == set(output.report.samples[0])
    output.report.samples[0]["after"] = "<b>|*x*"
    pruner.save_model()
    assert "&lt;b&gt;|*x*" in (tmp_path / "out" / "report.html").read_text()
    assert "\\<b>\\|\\*x\\*" in (tmp_path / "out" / "README.md").read_text()
