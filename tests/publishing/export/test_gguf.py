"""GGUF files hold the model's own weights, llama.cpp computes the same with them, and what it cannot run is refused."""

from __future__ import annotations

import json
import shutil
import string

import gguf
import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_encoder, tiny_model
from crias import BPE_VOCABULARY as VOCABULARY
from crias import CORPUS, LlamaCpp, byte_level, cria, save, word_piece
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_spectral_prune.cli.main import main
from hf_spectral_prune.publishing.export.gguf import export_gguf
from hf_spectral_prune.publishing.export.gguf_architecture import interleave_halves
from hf_spectral_prune.publishing.export.gguf_tokenizer import PRE_TOKENIZERS, read_tokenizer


def sentencepiece_like(gemma: bool = False) -> PreTrainedTokenizerFast:
    """A BPE with byte fallback as transformers makes it of a SentencePiece model: every way to join a token is a merge.

    Gemma's puts no space before a text, and has its newlines as added tokens.
    """
    trained = Tokenizer(models.BPE())
    spaces = normalizers.Replace(" ", "▁")
    trained.normalizer = spaces if gemma else normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    trained.train_from_iterator(CORPUS[:1], trainers.BpeTrainer(vocab_size=140))
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:at], token[at:])
        for token in learned
        for at in range(1, len(token))
        if token[:at] in learned and token[at:] in learned
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = trained.normalizer
    if gemma:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.add_tokens([AddedToken("\n" * count, normalized=False) for count in (1, 2, 3)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def split(pattern: str) -> tuple:
    return (
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


def steps_of(name: str) -> tuple[tuple, bool]:
    """Pre-tokenizer steps of a row of the table, and its `ignore_merges`."""
    for steps, names in PRE_TOKENIZERS.items():
        for ignore_merges, known in names.items():
            if known == name:
                pattern = next((step[1] for step in steps if step[0] == "Split"), None)
                if pattern is not None:
                    return split(pattern), ignore_merges
                digits = (pre_tokenizers.Digits(individual_digits=True),) if steps[0][0] == "Digits" else ()
                return (*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)), ignore_merges
    raise KeyError(name)


NAMES = sorted({name for names in PRE_TOKENIZERS.values() for name in names.values()})
TOKENIZER = byte_level()


def tiny(family: str = "llama", **fields):
    """A tiny model for the tokenizers of this file; widths are multiples of 32 unless said otherwise."""
    return tiny_model(family, vocab_size=VOCABULARY, **fields)


def read(file):
    """{name: tensor as float32} and {key: value} of a GGUF file."""
    reader = gguf.GGUFReader(file)
    tensors = {
        entry.name: torch.from_numpy(gguf.dequantize(entry.data, entry.tensor_type).astype(np.float32))
        for entry in reader.tensors
    }
    return tensors, {name: entry.contents() for name, entry in reader.fields.items()}


# ---- the file


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_tensors_are_the_models_own_once_the_heads_are_put_back(layout, tmp_path):
    model = cria(tiny(tie_word_embeddings=True), layout)
    tensors, fields = read(export_gguf(save(tmp_path, model, TOKENIZER), outtype="f32"))
    arch = "deci" if layout == "per_layer" else "llama"
    assert fields["general.architecture"] == arch
    weights = model.state_dict()
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    assert set(tensors) == {"token_embd.weight", "output_norm.weight"} | {
        f"blk.{i}.{name}.weight" for i in range(3) for name in names
    }
    assert torch.equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"])
    widths, heads, kv_heads = [], [], []
    for index in range(3):
        for name, source in names.items():
            found, expected = tensors[f"blk.{index}.{name}.weight"], weights[f"model.layers.{index}.{source}.weight"]
            if name in ("attn_q", "attn_k"):
                # Channel 2i of a head in the file is channel i of transformers, 2i + 1 is i + 2 (heads of 4 channels).
                back = [4 * head + channel for head in range(len(found) // 4) for channel in (0, 2, 1, 3)]
                found = found[back]
            assert torch.equal(found, expected), (index, name)
        widths.append(weights[f"model.layers.{index}.mlp.up_proj.weight"].shape[0])
        heads.append(weights[f"model.layers.{index}.self_attn.q_proj.weight"].shape[0] // 4)
        kv_heads.append(weights[f"model.layers.{index}.self_attn.k_proj.weight"].shape[0] // 4)
    several = layout == "per_layer"
    assert fields[f"{arch}.feed_forward_length"] == (widths if several else widths[0])
    assert fields[f"{arch}.attention.head_count"] == (heads if several else heads[0])
    assert fields[f"{arch}.attention.head_count_kv"] == (kv_heads if several else kv_heads[0])
    assert (len(set(widths)) > 1) == several
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        assert fields[f"{arch}.{key}"] == 4
    assert fields[f"{arch}.context_length"] == 128
    assert fields[f"{arch}.vocab_size"] == VOCABULARY


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 3))
def test_interleaving_halves_pairs_channel_i_with_its_partner(heads, half, columns):
    rows = torch.arange(heads * 2 * half * columns).view(heads * 2 * half, columns)
    mixed = interleave_halves(rows, heads).view(heads, half, 2, columns)
    whole = rows.view(heads, 2, half, columns)
    assert torch.equal(mixed[:, :, 0], whole[:, 0]) and torch.equal(mixed[:, :, 1], whole[:, 1])


def test_sharded_and_bfloat16_weights_are_read_tensor_by_tensor(tmp_path):
    model = tiny().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    TOKENIZER.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tensors, _ = read(export_gguf(tmp_path, tmp_path / "own.gguf", "bf16"))
    assert torch.equal(tensors["blk.2.ffn_down.weight"], model.model.layers[2].mlp.down_proj.weight.float())
    assert torch.equal(tensors["output.weight"], model.lm_head.weight.float())


# ---- llama.cpp


def check_in_llama_cpp(folder, model, outtype="f32", tolerance=2e-5):
    # Within a sliding window, which is the context that the file states; llama.cpp keeps one place for what it predicts.
    ids = random_batch(1, (getattr(model.config, "sliding_window", None) or 13) - 1)["input_ids"][0].tolist()
    found = LlamaCpp(export_gguf(folder, outtype=outtype)).log_probabilities(ids, VOCABULARY)
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], dim=-1)
    # llama.cpp leaves out tokens that cannot come.
    assert int(torch.isfinite(found).sum()) >= VOCABULARY - 2
    assert float((found - expected).nan_to_num().abs().max()) < tolerance


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_biases_of_a_repair_are_exported(family, tmp_path):
    pytest.importorskip("xllamacpp")
    model = cria(tiny(family), "per_layer", compensation="bias")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.bias.add_(0.5)
    check_in_llama_cpp(save(tmp_path, model, TOKENIZER), model)


@pytest.mark.parametrize(("outtype", "tolerance"), [("f16", 5e-3), ("bf16", 0.05), ("q8_0", 0.15), ("q4_0", 2.0)])
def test_smaller_types_stay_near(outtype, tolerance, tmp_path):
    pytest.importorskip("xllamacpp")
    model = tiny(intermediate_size=64)
    check_in_llama_cpp(save(tmp_path, model, TOKENIZER), model, outtype, tolerance)
    kinds = {entry.name: entry.tensor_type.name for entry in gguf.GGUFReader(next(tmp_path.glob("*.gguf"))).tensors}
    assert kinds["blk.0.ffn_down.weight"] == outtype.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == ("Q8_0" if outtype == "q4_0" else outtype.upper())


TEXT = st.one_of(
    st.text(st.sampled_from(string.printable + "éßüñ你好世мирПи😀½²'’"), max_size=40),
    st.lists(
        st.sampled_from(
            ["The", " quick", "12", " 345", "'ll", "'RE", " I", "\n", "\n\n", "  ", "\t", "x=", "!", "?!", " ö", "世界"]
        ),
        max_size=12,
    ).map("".join),
)


def test_scores_of_a_sentencepiece_model_file_are_taken(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("xllamacpp")
    options = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2}
    options |= {"vocab_size": VOCABULARY - 10, "character_coverage": 0.99, "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_prefix=tmp_path / "tokenizer", **options)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tiny().save_pretrained(tmp_path)
    exported = read_tokenizer(tmp_path, VOCABULARY)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert exported.scores[:300] == [pieces.GetScore(index) for index in range(300)]
    judge = LlamaCpp(export_gguf(tmp_path))
    for text in [*CORPUS, "  two  spaces", "", "one\n\n", "ß€😀"]:
        assert judge.tokens(text) == pieces.encode(text)


@pytest.mark.parametrize("name", [*NAMES, "sentencepiece", "gemma", "bert"])
def test_llama_cpp_cuts_text_into_the_same_tokens(name, tmp_path):
    pytest.importorskip("xllamacpp")
    if name in ("sentencepiece", "gemma"):
        tokenizer = sentencepiece_like(name == "gemma")
    elif name == "bert":
        tokenizer = word_piece()
    else:
        steps, ignore_merges = steps_of(name)
        tokenizer = byte_level(steps, ignore_merges=ignore_merges)
    save(tmp_path, tiny_encoder("bert", task="Model", vocab_size=VOCABULARY) if name == "bert" else tiny(), tokenizer)
    assert read_tokenizer(tmp_path, VOCABULARY).pre == (name if name in NAMES else "default")
    judge = LlamaCpp(export_gguf(tmp_path))

    @settings(max_examples=40, deadline=None)
    @given(TEXT)
    def same(text):
        if name == "bert":
            # Two control characters that BERT's normaliser drops are spaces to llama.cpp, which docs/deploy.md says.
            text = text.translate({ord("\v"): None, ord("\f"): None})
        assert judge.tokens(text) == tokenizer(text)["input_ids"]

    same()
    for text in CORPUS:
        assert judge.tokens(text) == tokenizer(text)["input_ids"]


def test_special_tokens_flags_and_template_are_written(tmp_path):
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.add_tokens(["<tool>"])
    _, fields = read(export_gguf(save(tmp_path, tiny(), tokenizer)))
    known = {name.removeprefix("tokenizer."): value for name, value in fields.items() if name.startswith("tokenizer.")}
    assert (known["ggml.bos_token_id"], known["ggml.eos_token_id"], known["ggml.unknown_token_id"]) == (1, 2, 0)
    assert known["ggml.add_bos_token"] and not known["ggml.add_eos_token"] and known["ggml.add_space_prefix"]
    assert known["chat_template"] == "{{ messages }}"
    kinds = known["ggml.token_type"]
    tool = known["ggml.tokens"].index("<tool>")
    assert [kinds[0], kinds[1], kinds[3], kinds[-1], kinds[tool]] == [2, 3, 6, 5, 4]  # unknown, control, byte, unused, user's
    assert len(known["ggml.tokens"]) == len(known["ggml.scores"]) == VOCABULARY
    # What is joined first has the best score.
    ranks = [known["ggml.scores"][tokenizer.get_vocab()[left + right]] for left, right in merges_of(tokenizer)]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize(("family", "folder", "name"), [("llama", "my-phi-3", "my-Phi 3"), ("phi3", "small", "small")])
def test_only_phi3_with_its_first_tokenizer_is_named_so(family, folder, name, tmp_path):
    _, fields = read(export_gguf(save(tmp_path / folder, tiny(family), TOKENIZER)))
    assert fields["general.name"] == name
    tokenizer = sentencepiece_like()
    tokenizer.add_tokens(["<|endoftext|>"], special_tokens=True)
    if family == "phi3":
        _, fields = read(export_gguf(save(tmp_path / folder, tiny(family), tokenizer)))
        assert fields["general.name"] == "small (Phi-3)"


def merges_of(tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


# ---- what cannot be exported


def refused(capsys, folder, *messages: str, words=()) -> None:
    assert main(["export", "gguf", str(folder), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    told = [line for line in lines if line.startswith("cria export:")]
    assert len(told) == 1, lines
    for message in messages:
        assert message in told[0]
    assert not [path for path in folder.rglob("*") if ".gguf" in path.name], "nothing half-written is left"


def damaged_tokenizer(folder, change) -> None:
    save(folder, tiny(), TOKENIZER)
    parts = json.loads((folder / "tokenizer.json").read_text())
    change(parts)
    (folder / "tokenizer.json").write_text(json.dumps(parts))


def test_unknown_pre_tokenizer_is_no_guess(tmp_path, capsys):
    save(tmp_path, tiny(), byte_level(split(r"\p{L}+|\p{N}{1,4}|\s+")))
    refused(capsys, tmp_path, "pre-tokenizer", "Split + ByteLevel", "smollm", "not guessed")


def test_word_level_tokenizer_is_refused(tmp_path, capsys, tokenizer):
    save(tmp_path, tiny(), tokenizer)
    refused(capsys, tmp_path, "of type WordLevel", "byte-level BPE")


def test_normalizer_before_known_split_is_refused(tmp_path, capsys):
    save(tmp_path, tiny(), byte_level(normalizer=normalizers.Lowercase()))
    refused(capsys, tmp_path, "Lowercase + ByteLevel")


def test_merges_that_scores_cannot_say_are_refused(tmp_path, capsys):
    save(tmp_path, tiny(), sentencepiece_like())
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    left, right = parts["model"]["merges"].pop(5)
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    refused(capsys, tmp_path, f"no merge `{left} {right}`", "tokenizer.model")


def test_ids_beyond_the_embeddings_are_refused(tmp_path, capsys):
    save(tmp_path, tiny_model(), TOKENIZER)
    refused(capsys, tmp_path, "has the id 399", "96 embeddings")


@pytest.mark.parametrize(
    ("outtype", "fields", "messages"),
    [
        ("q8_0", {}, ["mlp.down_proj", "rows of 24 values", "`--round_to 32`", "`--outtype f16`"]),
        ("q4_0", {"intermediate_size": 64, "hidden_size": 48}, ["rows of 48 values", "`--outtype f16`"]),
    ],
)
def test_rows_that_are_no_multiple_of_the_block_are_refused(outtype, fields, messages, tmp_path, capsys):
    save(tmp_path, tiny(**fields), TOKENIZER)
    refused(capsys, tmp_path, *messages, words=["--outtype", outtype])


def test_bert_is_told_where_it_can_go(tmp_path, capsys):
    tokenizer = word_piece()
    save(tmp_path, cria(tiny_encoder("bert")), tokenizer)
    refused(capsys, tmp_path, "`CriaBertForSequenceClassification`", "`...BertModel`")
    save(tmp_path, cria(tiny_encoder("bert", task="Model", vocab_size=len(tokenizer)), units=["ffn"]), tokenizer)
    refused(capsys, tmp_path, "`bert` reads one FFN width", "`--layout uniform`")


@pytest.mark.parametrize(
    ("options", "message"), [({"lowercase": False}, "`lowercase` is off"), ({"strip_accents": False}, "its steps")]
)
def test_word_pieces_of_another_kind_are_refused(options, message, tmp_path, capsys):
    tokenizer = word_piece(**options)
    save(tmp_path, tiny_encoder("bert", task="Model", vocab_size=len(tokenizer)), tokenizer)
    refused(capsys, tmp_path, message, "uncased BERT")


@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens", "max_tokens"])
def test_the_pooling_of_sentence_transformers_is_written(mode, tmp_path):
    tokenizer = word_piece()
    save(tmp_path, tiny_encoder("bert", task="Model", vocab_size=len(tokenizer)), tokenizer)
    (tmp_path / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens")}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
    _, fields = read(export_gguf(tmp_path))
    wanted = {"cls_token": gguf.PoolingType.CLS, "mean_tokens": gguf.PoolingType.MEAN, "max_tokens": None}[mode]
    assert fields.get("bert.pooling_type") == wanted
    assert fields["tokenizer.ggml.tokens"][:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁!"]


@pytest.mark.parametrize(
    ("family", "fields", "messages"),
    [
        ("qwen3", {}, ["`qwen3` reads one FFN width", "`openelm` takes the embeddings as output weights"]),
        ("gemma3", {}, ["`gemma3` reads one FFN width"]),
        ("smollm3", {"no_rope_layer_interval": 4}, ["`smollm3` reads one FFN width"]),
    ],
)
def test_layers_that_differ_where_llama_cpp_has_one_width_are_refused(family, fields, messages, tmp_path, capsys):
    save(tmp_path, cria(tiny(family, **fields)), TOKENIZER)
    refused(capsys, tmp_path, *messages, "`--layout uniform`", "`cria export onnx`")


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0}
LLAMA3 = {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}}
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("olmo2", {"head_dim": 8}, "as many heads as fill the hidden size"),
        ("qwen3", HALF, "rotates whole heads"),
        ("smollm3", {"no_rope_layer_interval": 2}, "unlike `no_rope_layers`"),
        ("gemma", {"tie_word_embeddings": False}, "takes the embeddings as output weights"),
        ("gemma2", {"attn_logit_softcapping": None}, "caps attention"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "in regular turn"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "does not cap attention"),
        ("gemma3", {"use_bidirectional_attention": True}, "in both directions"),
        ("gemma3", {"attention_bias": True}, "no place for `model.layers.0.self_attn.k_proj.bias`"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scales attention by the size of a head alone"),
        ("gpt_neox", {"attention_bias": False}, "has a bias in every projection"),
        ("phi", {"qk_layernorm": True}, "does not norm queries and keys"),
        ("phi", {"head_dim": 8}, "as many heads as fill the hidden size"),
        ("starcoder2", {"use_bias": False}, "has a bias in every linear layer"),
        ("falcon", {"alibi": True}, "rotates, and has attention and FFN side by side"),
        ("falcon", {"bias": True}, "no place for `transformer.h.0.mlp.dense_4h_to_h.bias`"),
        ("cohere", {"use_qk_norm": True}, "does not norm queries and keys"),
        ("mixtral", LLAMA3, "does not compute `rope_parameters` of type `llama3`"),
        ("qwen2_moe", {"norm_topk_prob": True}, "takes the router's weights as they are"),
        ("qwen3_moe", {"norm_topk_prob": True}, "has experts in every layer"),
        ("olmoe", {"num_key_value_heads": 8, "clip_qkv": 5.0}, "clips no projections"),
    ],
)
def test_what_an_architecture_lacks_is_named(family, fields, message, tmp_path, capsys):
    save(tmp_path, tiny(family, **fields), TOKENIZER)
    refused(capsys, tmp_path, message, "Use `cria export onnx`")


def test_biases_that_an_architecture_lacks_are_refused(tmp_path, capsys):
    save(tmp_path, tiny("qwen3", attention_bias=True), TOKENIZER)
    refused(capsys, tmp_path, "self_attn.k_proj.bias", "no place")


def changed_config(folder, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"intermediate_size": 32}, ["mlp.down_proj.weight", "(32, 24)", "(32, 32)", "changed by hand"]),
        ({"num_hidden_layers": 4}, ["lack `model.layers.3."]),
        ({"num_hidden_layers": 2}, ["have `model.layers.2.", "no place"]),
        ({"hidden_act": "gelu"}, ["`gelu`"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, ["`yarn`"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
        ({"architectures": None}, ["names no class"]),
        ({"rms_norm_eps": "small"}, ["cannot be read", "rms_norm_eps"]),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ["quantised"]),
        ({"model_type": "opt", "architectures": ["OPTForCausalLM"]}, ["OPTForCausalLM", "Llama, Mistral", "BERT"]),
    ],
)
def test_config_that_does_not_fit_is_refused(fields, messages, tmp_path, capsys):
    save(tmp_path, tiny(), TOKENIZER)
    changed_config(tmp_path, **fields)
    refused(capsys, tmp_path, *messages)


@pytest.mark.parametrize(
    ("layer", "value", "message"),
    [("1", "wide", "cannot be read"), ("1", 12, "changed by hand"), ("7", 8, "layer indices")],
)
def test_widths_changed_by_hand_are_refused(layer, value, message, tmp_path, capsys):
    save(tmp_path, cria(tiny()), TOKENIZER)
    own = json.loads((tmp_path / "config.json").read_text())["per_layer_config"]
    assert own["1"]["intermediate_size"] != 12
    changed_config(tmp_path, per_layer_config=own | {layer: {"intermediate_size": value}})
    refused(capsys, tmp_path, message)


def test_folders_without_their_parts_are_refused(tmp_path, capsys):
    refused(capsys, tmp_path, "no `config.json`")
    tiny().save_pretrained(tmp_path)
    refused(capsys, tmp_path, "no tokenizer")
    save(tmp_path, tiny(), TOKENIZER)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(capsys, tmp_path, "model.safetensors", "no whole safetensors file")
    (tmp_path / "model.safetensors").unlink()
    refused(capsys, tmp_path, "no weights (`model.safetensors`")


def test_values_that_no_number_is_or_f16_cannot_hold_are_refused(tmp_path, capsys):
    save(tmp_path, tiny(), TOKENIZER)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    for value, message in ((float("nan"), "not finite"), (1e5, "too large for f16")):
        weights[name][3, 3] = value
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        refused(capsys, tmp_path, name, message)


def test_pruned_folder_changed_by_hand_is_refused(tmp_path, capsys):
    from hf_spectral_prune import SpectralPruner, SpectralPruningArguments

    folder = tmp_path / "out"
    options = {"target_reduction": 0.1, "criterion": "magnitude", "min_ffn_units": 4, "disable_tqdm": True, "self_check": False}
    args = SpectralPruningArguments(output_dir=str(folder), target_scope="all", **options)
    pruner = SpectralPruner(tiny(), args, [random_batch(4, 32)], processing_class=TOKENIZER)
    pruner.prune()
    pruner.save_model()
    # The self-check, which has tests of its own, is stated instead of run.
    report = json.loads((folder / "pruning_report.json").read_text())
    (folder / "pruning_report.json").write_text(json.dumps(report | {"self_check": {"plain": {"max_abs_diff": 0.0}}}))
    assert main(["export", "gguf", str(folder), "--outtype", "f32"]) == 0
    assert [path.name for path in folder.glob("*.gguf")] == ["out-f32.gguf"]
    (folder / "out-f32.gguf").unlink()
    changed_config(folder, rms_norm_eps=1e-3)
    refused(capsys, folder, "config.json", "not the file that the self-check read")


def test_words_that_make_no_sense_are_refused(tmp_path, capsys):
    folder = save(tmp_path / "model", tiny(), TOKENIZER)
    refused(capsys, folder, "q5_1", words=["--outtype", "q5_1"])
    refused(capsys, folder, "must end in `.gguf`", words=["--output_file", str(tmp_path / "model.bin")])
    refused(capsys, folder, "there is no folder", words=["--output_file", str(tmp_path / "none" / "model.gguf")])
    refused(capsys, folder, "`--out_type` is no flag", words=["--out_type", "f16"])
    assert main(["export"]) == 2
    assert main(["export", "ggfu", str(folder)]) == 2
    assert "Did you mean `gguf`?" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert main(["export", "gguf", str(folder)]) == 2
    assert "is not a folder" in capsys.readouterr().err
