"""Small pruned models and their folders, and llama.cpp as a judge of exports; what the tests of exports and clients share."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import encoder_batch, random_batch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_spectral_prune import PruningPlan, SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning import choose_units

CORPUS = [
    "The 3 quick brown foxes jumped over 12,345 lazy dogs; weren't they quick? HELLO Hello hello, I'LL say.",
    "def f(x):\n    return x ** 2  # twice   as\tnice\n\n\nEnd.",
    "Ünïcödé straße naïve — Привет, мир! 你好世界 emoji 😀😀 naïve",
] * 3
BPE_VOCABULARY = 400
# A task for lm_eval; `rows` is a jsonl file.
TASK = """
task: cria_pairs
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def cria(model: PreTrainedModel, layout: str = "per_layer", **fields) -> PreTrainedModel:
    """The model without 30 % of its prunable parameters; its layers differ for a per-layer layout."""
    options: dict[str, Any] = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4}
    if layout == "per_layer":
        options["allocation"] = "scores"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".1." in name and parameter.ndim == 2:
                    parameter.mul_(0.7)  # so that this layer is surely of another width than the others
    encoder = not hasattr(model.config, "num_key_value_heads")
    batches = [encoder_batch(model, 4, 16, seed) if encoder else random_batch(4, 32, seed) for seed in (0, 1)]
    options |= {"layout": layout, "criterion": "energy", "compensation": "none", "disable_tqdm": True}
    args = SpectralPruningArguments(**options | fields)
    pruned = SpectralPruner(model, args, batches).prune().model
    assert type(pruned).__name__.startswith("Cria") == (layout == "per_layer" or type(model).__name__.startswith("Cria"))
    return pruned.eval()


def byte_level(steps=(), normalizer=None, **options) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens, trained on the spot; GPT-2's if not said otherwise."""
    steps = steps or (pre_tokenizers.ByteLevel(add_prefix_space=False),)
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(list(steps))
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=BPE_VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|im_start|>")


def word_piece(lowercase: bool = True, **options) -> PreTrainedTokenizerFast:
    """An uncased WordPiece like BERT's, trained on the spot."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save(folder: Path, model: PreTrainedModel, tokenizer: Any) -> Path:
    """The folder with model and tokenizer in it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class LlamaCpp:
    """A GGUF file in llama.cpp (the PyPI package xllamacpp), with float32 caches so that only the file decides."""

    def __init__(self, file: Path, context: int = 128, embeddings: bool = False) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        # Its fast attention works in float16 inside.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if embeddings:
            params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
        params.warmup, params.port, params.verbosity = False, 0, -1
        self.server = xllamacpp.Server(params)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, with what the model puts around it."""
        return self._ask("tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]

    def hidden_states(self, text: str) -> torch.Tensor:
        """(tokens, hidden) the outputs of an encoder for a text, with what the model puts around it."""
        return torch.tensor(self._ask("embeddings", {"content": text, "embd_normalize": -1})[0]["embedding"])

    def _ask(self, path: str, content: dict[str, Any]) -> Any:
        body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.listening_address}/{path}", body, kind)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def _complete(self, prompt: str | Sequence[int], **options) -> dict[str, Any]:
        answer = self.server.handle_completions({"prompt": prompt, "temperature": 0, **options})
        assert "choices" in answer, answer
        return answer["choices"][0]

    def greedy_text(self, prompt: str, number: int) -> str:
        """The most likely continuation of a prompt by up to `number` tokens."""
        return self._complete(prompt, n_predict=number)["text"]

    def log_probabilities(self, ids: Sequence[int], vocabulary: int) -> torch.Tensor:
        """(vocabulary,) of the token after `ids`; NaN where llama.cpp does not tell."""
        # Some token is forced, as llama.cpp tells nothing of one that ends the text; the probabilities are the model's own.
        told = self._complete(list(ids), n_predict=1, n_probs=vocabulary, logit_bias=[[vocabulary // 2, 1e4]])
        found = told["logprobs"]["content"][0]["top_logprobs"]
        values = torch.full((vocabulary,), math.nan)
        for entry in found:
            values[entry["id"]] = entry["logprob"]
        return values

    def log_likelihood(self, ids: Sequence[int]) -> float:
        """Mean log probability of every token of `ids` after the ones before it."""
        total = 0.0
        for at in range(1, len(ids)):
            # Forcing the token makes llama.cpp report its probability, as the model gave it.
            forced = self._complete(list(ids[:at]), n_predict=1, n_probs=1, logit_bias=[[ids[at], 1e4]])
            told = forced["logprobs"]["content"][0]
            assert told["id"] == ids[at]
            total += told["logprob"]
        return total / (len(ids) - 1)


# Kept of each kind of unit by `random_plan`.
CUT = {"ffn": 16, "shared_ffn": 8, "decoder_ffn": 8, "heads": 2}


def random_plan(model: PreTrainedModel, seed: int = 0, sizes: dict[str, int] | None = None) -> PruningPlan:
    """Units drawn at random, of each kind as many as `sizes` says (`CUT`)."""
    generator = torch.Generator().manual_seed(seed)
    groups = unit_groups(model)
    scores = {group.key: torch.rand(group.size, generator=generator) for group in groups}
    kept = {group.key: (sizes or CUT)[group.kind] for group in groups}
    return choose_units(groups, scores, kept, num_parameters(model), model_type=model.config.model_type)
