"""Tiny random models of every family, and what the tests share."""

from __future__ import annotations

import gc
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch
import transformers
from accelerate.utils import memory
from forks import ForkServer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import hf_spectral_prune  # noqa: F401  (registers the Cria classes)
from hf_spectral_prune.calibration import Moments
from hf_spectral_prune.publishing.report.write import write_report
from hf_spectral_prune.saving import folder as saving
from hf_spectral_prune.saving import reload

torch.set_num_threads(1)
# A machine that is busy must not fail a test.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

VOCABULARY = 96

# Of a head of size 4; a rotation needs pairs, and the default of some families is a quarter.
_HALF_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
# Row of the test matrix: stock class prefix and the config fields that make the family what it is.
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {}),
    "qwen3-biases": ("Qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "granite": ("Granite", {"residual_multiplier": 0.7, "attention_multiplier": 0.4, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {"sliding_window": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2}),
    "gemma3-biases": ("Gemma3", {"attention_bias": True, "sliding_window_pattern": 2}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
    "nemotron": ("Nemotron", {}),
    "cohere": ("Cohere", {"logit_scale": 1.0}),
    "cohere2": ("Cohere2", {"logit_scale": 1.0, "sliding_window": 8}),
    "glm": ("Glm", {"pad_token_id": 0}),
    "glm4": ("Glm4", {"pad_token_id": 0}),
    "phi": ("Phi", {}),
    "stablelm": ("StableLm", _HALF_ROTARY),
    "stablelm-parallel": ("StableLm", _HALF_ROTARY | {"use_parallel_residual": True}),
    "opt": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 32}),
    "opt-post-norm": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
}
_LINEAR_ATTENTION = {f"linear_{name}_head_dim": 4 for name in ("key", "value")} | {"full_attention_interval": 2}
_LINEAR_ATTENTION |= {f"linear_num_{name}_heads": 4 for name in ("key", "value")}
# Families whose attention is left alone.
FFN_ONLY = {
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 8}),
    "qwen3_5": ("Qwen3_5", _LINEAR_ATTENTION),
    "gpt_neox": ("GPTNeoX", _HALF_ROTARY),
    "falcon": ("Falcon", {"ffn_hidden_size": 24}),
    "falcon-alibi": ("Falcon", {"ffn_hidden_size": 24, "alibi": True, "parallel_attn": False, "bias": True}),
    "bloom": ("Bloom", {"hidden_size": 8, "num_attention_heads": 2}),  # 32 neurons
    "gpt2": ("GPT2", {"n_inner": 24}),
    "gpt2-open": ("GPT2", {}),
}
# Mixtures of experts, of which each has 24 neurons; in the second layer of one there are none.
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "intermediate_size": 40}
MOE = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", _EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3Moe", _EXPERTS | {"mlp_only_layers": [1]}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
}
# Families whose table is another's under other names: beside the pairwise products, the fast tests leave them out.
ALIKE = {"starcoder2", "nemotron", "cohere2", "glm", "stablelm", "falcon-alibi", "bloom", "gpt2-open", "gpt_neox"}
# Families that differ most from each other: what does not depend on the table alone runs on these in the fast tests.
CORE = {"llama", "qwen2-tied", "gemma3", "gpt2", "opt", "cohere", "phi3", "olmo2", "bert", "roberta", "distilbert", "modernbert"}
# Families whose stock class holds no other number of heads.
FIXED_HEADS = {"opt", "opt-post-norm", "stablelm", "stablelm-parallel"}
# Families whose classes of text models have names of their own, but for the one that writes.
_WITH_IMAGES = ("Gemma3", "Qwen3_5")
# Families whose config says no width of the FFN.
FIXED_FFN = {"bloom"}


def class_name(family: str, task: str) -> str:
    """The class of transformers that a row of the tables is made of, but for those that see images."""
    if family in SEQ2SEQ:
        return f"{SEQ2SEQ[family][0]}{task or SEQ2SEQ[family][1]}"
    prefix = (FAMILIES | FFN_ONLY | MOE | ENCODERS)[family][0]
    if task != "ForCausalLM" and prefix in _WITH_IMAGES:
        prefix = f"{prefix}Text"
    return f"{prefix}{task}".replace("GPT2ForCausalLM", "GPT2LMHeadModel")


def has_task(family: str, task: str) -> bool:
    """Whether transformers has the family with this task head."""
    return hasattr(transformers, class_name(family, task))


def tiny_model(family: str = "llama", *, heads: tuple[int, int] = (8, 4), task: str = "ForCausalLM", **fields) -> PreTrainedModel:
    """A random model with weights large enough that every unit matters: 3 layers, 24 neurons, hidden size 32."""
    prefix, special = (FAMILIES | FFN_ONLY | MOE)[family]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if prefix not in ("Qwen2", "Falcon", "Olmoe"):  # which have no such field
        sizes["head_dim"] = 4
    if family in FIXED_FFN:
        del sizes["intermediate_size"]
    config = getattr(transformers, class_name(family, "Config"))(**sizes | special | fields)
    torch.manual_seed(0)
    model = getattr(transformers, class_name(family, task))(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A test that takes more threads takes them for itself alone: the tests after it compare bit for bit."""
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leaves what the libraries made at import to itself: walking through their objects takes a third of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def garbage_is_collected_by_python_alone():
    """accelerate collects it at the end of every training as well, which takes as long as the training of a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))
        yield


_BART_SIZES = {"d_model": 32, "max_position_embeddings": 128, "init_std": 0.15, "decoder_start_token_id": 2}
for _side in ("encoder", "decoder"):
    _BART_SIZES |= {f"{_side}_layers": 2, f"{_side}_attention_heads": 4, f"{_side}_ffn_dim": 24}
_T5_SIZES = {"d_model": 32, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_WHISPER_SIZES = {**_BART_SIZES, "num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 64, "decoder_ffn_dim": 40}
_WHISPER_SIZES |= {"suppress_tokens": None, "begin_suppress_tokens": None}
del _WHISPER_SIZES["max_position_embeddings"]
# Encoder-decoders: stock class prefix, name of the class that says text, config fields.
SEQ2SEQ = {
    "bart": ("Bart", "ForConditionalGeneration", _BART_SIZES | {"decoder_layers": 3, "decoder_ffn_dim": 40}),
    "mbart": ("MBart", "ForConditionalGeneration", _BART_SIZES),
    "pegasus": ("Pegasus", "ForConditionalGeneration", _BART_SIZES),
    "marian": ("Marian", "MTModel", _BART_SIZES | {"decoder_vocab_size": VOCABULARY}),
    "m2m_100": ("M2M100", "ForConditionalGeneration", _BART_SIZES),
    "whisper": ("Whisper", "ForConditionalGeneration", _WHISPER_SIZES),
    "t5": ("T5", "ForConditionalGeneration", _T5_SIZES | {"num_layers": 3, "num_decoder_layers": 2, "feed_forward_proj": "relu"}),
    "t5-gated": ("T5", "ForConditionalGeneration", _T5_SIZES | {"feed_forward_proj": "gated-gelu"}),
    "mt5": ("MT5", "ForConditionalGeneration", _T5_SIZES | {"feed_forward_proj": "gated-gelu"}),
    "umt5": ("UMT5", "ForConditionalGeneration", _T5_SIZES | {"feed_forward_proj": "gated-gelu"}),
}


def tiny_seq2seq(family: str = "t5", task: str = "", **fields) -> PreTrainedModel:
    """A random encoder-decoder with weights large enough that every unit matters."""
    prefix, generating, sizes = SEQ2SEQ[family]
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{prefix}Config")(**tokens | sizes | fields)
    torch.manual_seed(0)
    model = getattr(transformers, prefix + (task or generating))(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):  # positions may be fixed, and are then not saved
                module.weight.normal_(std=0.15)
    return model


def num_moments() -> int:
    """How many sums of calibration signals are in memory."""
    gc.collect()
    return sum(type(value) is Moments for value in gc.get_objects())


def random_batch(rows: int = 2, length: int = 12, seed: int = 0, padding: str | None = None) -> dict[str, torch.Tensor]:
    """Random token ids; `padding` "left" or "right" masks a third of the first row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding is not None:
        hidden = slice(0, length // 3) if padding == "left" else slice(length - length // 3, length)
        mask[0, hidden] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="session")
def forks():
    """Starts fresh Python processes quickly."""
    server = ForkServer()
    yield server
    server.end()


@pytest.fixture(scope="session", autouse=True)
def self_checks_are_forked(forks):
    """Saved folders are reloaded in forked processes; `new_processes` is for tests of the process itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "subprocess", forks)
        yield


@pytest.fixture(scope="session", autouse=True)
def saved_folders_have_no_page():
    """Drawing the report page and its plots is half of the work of saving a tiny model; `report_pages` is for tests of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "write_report", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def report_pages(saved_folders_have_no_page):
    """Saved folders of the module have their page and plots, as users' have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "write_report", write_report)
        yield


@pytest.fixture
def new_processes(monkeypatch):
    """Saved folders are reloaded by an interpreter that starts anew, as for users."""
    monkeypatch.setattr(reload, "subprocess", subprocess)


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    """Calibration batches for tiny models: 4 x 4 sequences of 32 tokens."""
    return [random_batch(4, 32, seed) for seed in range(4)]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 96 words: "w3" ... "w95" and three special tokens."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index for index in range(3, VOCABULARY)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3")


def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (or the first output) of a model, without gradients."""
    with torch.inference_mode():
        return model.eval()(**batch)[0]


_ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0}
# Row of the encoders' test matrix: stock class prefix, the config fields that make the family what it is.
ENCODERS = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", _ROBERTA),
    "xlm-roberta": ("XLMRoberta", _ROBERTA),
    "camembert": ("Camembert", _ROBERTA),
    "electra": ("Electra", {"embedding_size": 16}),
    "distilbert": ("DistilBert", {}),
    "modernbert": ("ModernBert", {"local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}),
    "modernbert-biases": (
        "ModernBert",
        {"cls_token_id": 1, "sep_token_id": 2, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
    ),
}
_TASKS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification")
ENCODER_TASKS = [
    (family, task)
    for family, more in {
        "bert": ("LMHeadModel", "ForNextSentencePrediction", "ForPreTraining"),
        "roberta": ("ForCausalLM",),
        "xlm-roberta": ("ForCausalLM",),
        "camembert": ("ForCausalLM",),
        "electra": ("ForCausalLM", "ForPreTraining"),
        "distilbert": (),
        "modernbert": (),
    }.items()
    for task in (*_TASKS, "ForQuestionAnswering", *more)
]


# 3 layers, 24 neurons, 8 heads of size 4.
TINY_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


_SIZES = {name: value for name, value in TINY_SIZES.items() if not name.endswith("token_id")} | {"num_key_value_heads": 4}
_EYES = _SIZES | {"image_size": 16, "patch_size": 4, "num_channels": 3, "num_attention_heads": 4}
_QWEN_EYES = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "hidden_size": 32}
_QWEN_TEXT = _SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}}
# Models that see images beside a text model: stock class prefix, config of their vision tower, of their text model, and the rest.
SEEING = {
    "llava": ("Llava", _EYES | {"model_type": "clip_vision_model"}, _SIZES | {"model_type": "llama"}, {}),
    "gemma3": (
        "Gemma3",
        _EYES | {"model_type": "siglip_vision_model"},
        _SIZES | {"head_dim": 4, "sliding_window": 8, "sliding_window_pattern": 2},
        {"mm_tokens_per_image": 4, "boi_token_index": 7, "eoi_token_index": 8},
    ),
    "qwen2_vl": ("Qwen2VL", _QWEN_EYES | {"embed_dim": 32, "mlp_ratio": 2}, _QWEN_TEXT, {}),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        _QWEN_EYES | {"out_hidden_size": 32, "intermediate_size": 24, "fullatt_block_indexes": [1], "window_size": 16},
        _QWEN_TEXT,
        {},
    ),
}
# The token that stands for a piece of an image, and for a video.
_IMAGE, _VIDEO = 5, 6


def tiny_seeing(name: str) -> PreTrainedModel:
    """A random model that sees images and writes, with weights large enough that every unit matters."""
    prefix, eyes, text, more = SEEING[name]
    tokens = {"image_token_id": _IMAGE, "image_token_index": _IMAGE, "video_token_id": _VIDEO}
    tokens |= {"vision_start_token_id": 7, "vision_end_token_id": 8}
    tokens = {field: value for field, value in tokens.items() if hasattr(getattr(transformers, f"{prefix}Config"), field)}
    config = getattr(transformers, f"{prefix}Config")(vision_config=eyes, text_config=text, **tokens | more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.15)
    return model


def image_text_batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Two texts of 20 tokens with an image of noise in each."""
    name = model.config.model_type
    ids, pieces = random_batch(2, 20)["input_ids"].clamp(min=10), 16 if name == "llava" else 4
    ids[:, 0], ids[:, 1 : 1 + pieces], ids[:, 1 + pieces] = 7, _IMAGE, 8
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    generator = torch.Generator().manual_seed(0)
    if name.startswith("qwen"):  # 16 patches an image, twice over in time; four of them make a piece
        patches = torch.randn(32, 3 * 2 * 4 * 4, generator=generator)
        grid = torch.tensor([[1, 4, 4]] * 2)
        return batch | {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": (ids == _IMAGE).int()}
    kinds = {"token_type_ids": (ids == _IMAGE).long()} if name == "gemma3" else {}
    return batch | kinds | {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}


def tiny_encoder(family: str = "bert", *, task: str = "ForSequenceClassification", **fields) -> PreTrainedModel:
    """A random encoder with weights large enough that every unit matters: 3 layers, 24 neurons, 8 heads of size 4."""
    prefix, special = ENCODERS[family]
    sizes = {**TINY_SIZES}
    if prefix == "DistilBert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
    config = getattr(transformers, f"{prefix}Config")(**sizes | special | fields)
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}{task}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


def encoder_batch(model: PreTrainedModel, rows: int = 2, length: int = 12, seed: int = 0, padding: str | None = None):
    """Random inputs of an encoder: two segments for BERT, 3 choices a row for multiple choice."""
    several = "MultipleChoice" in type(model).__name__
    batch = random_batch(rows * 3 if several else rows, length, seed, padding)
    if model.config.model_type.removeprefix("cria_") in ("bert", "electra"):
        batch["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(batch["input_ids"].shape).contiguous()
    if several:
        batch = {name: value.unflatten(0, (rows, 3)) for name, value in batch.items()}
    return batch


def write_inputs(folder: Path, tokenizer: PreTrainedTokenizerFast, words: int = 2_000) -> Path:
    """Writes what a command reads: a tiny model with its tokenizer to `model`, and random words to `text.txt`."""
    tiny_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    numbers = torch.randint(3, VOCABULARY, (words,), generator=torch.Generator().manual_seed(0))
    (folder / "text.txt").write_text(" ".join(f"w{number}" for number in numbers.tolist()))
    return folder


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    """A tiny model with its tokenizer, and a text of 2,000 random words."""
    return write_inputs(tmp_path, tokenizer)


def refused(call, *messages: str) -> None:
    """Asserts that a call raises a ValueError of one line with these words in it."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        call()
    assert "\n" not in str(caught.value)
    for message in messages:
        assert message in str(caught.value), str(caught.value)
