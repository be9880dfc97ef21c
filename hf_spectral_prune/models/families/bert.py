"""BERT and the encoders with the same table under other names: FFN neurons and attention heads of an encoder layer."""

from __future__ import annotations

from dataclasses import replace

from .base import Family, Producer, Signal, UnitKind

_BERT_FFN = UnitKind(
    kind="ffn",
    before=Signal("intermediate.dense", "output"),
    after=Signal("output.dense", "input"),
    producers=(Producer("intermediate.dense"),),
    consumer="output.dense",
    size_field="intermediate_size",
    config_fields=("intermediate_size",),
    stream=Signal("output.LayerNorm", "input"),
)
_BERT_HEADS = UnitKind(
    kind="heads",
    before=Signal("attention.self.value", "output"),
    after=Signal("attention.output.dense", "input"),
    producers=(Producer("attention.self.query"), Producer("attention.self.key"), Producer("attention.self.value")),
    consumer="attention.output.dense",
    size_field="num_attention_heads",
    config_fields=("num_attention_heads",),
    module_fields=(("attention.self", "num_attention_heads"), ("attention.self", "all_head_size")),
    stream=Signal("attention.output.LayerNorm", "input"),
)
# The config's own names: an override in `per_layer_config` under a name of the `attribute_map` would not be looked up.
_DISTILBERT_FFN = UnitKind(
    kind="ffn",
    before=Signal("ffn.lin1", "output"),
    after=Signal("ffn.lin2", "input"),
    producers=(Producer("ffn.lin1"),),
    consumer="ffn.lin2",
    size_field="hidden_dim",
    config_fields=("hidden_dim",),
    stream=Signal("output_layer_norm", "input"),
)
_DISTILBERT_HEADS = UnitKind(
    kind="heads",
    before=Signal("attention.v_lin", "output"),
    after=Signal("attention.out_lin", "input"),
    producers=(Producer("attention.q_lin"), Producer("attention.k_lin"), Producer("attention.v_lin")),
    consumer="attention.out_lin",
    size_field="n_heads",
    config_fields=("n_heads",),
    module_fields=(("attention", "n_heads"),),
    stream=Signal("sa_layer_norm", "input"),
)
# `Wi` holds the half that goes through the activation first, then the half it is multiplied with.
_MODERNBERT_FFN = UnitKind(
    kind="ffn",
    before=Signal("mlp.Wi", "output", block=0, num_blocks=2),
    after=Signal("mlp.Wo", "input"),
    producers=(Producer("mlp.Wi", num_blocks=2),),
    consumer="mlp.Wo",
    size_field="intermediate_size",
    config_fields=("intermediate_size",),
    bias_field="mlp_bias",
)
# `Wqkv` holds all queries, then all keys, then all values. The rotary angles belong to one head size, shared by all heads.
_MODERNBERT_HEADS = UnitKind(
    kind="heads",
    before=Signal("attn.Wqkv", "output", block=2, num_blocks=3),
    after=Signal("attn.Wo", "input"),
    producers=(Producer("attn.Wqkv", num_blocks=3),),
    consumer="attn.Wo",
    size_field="num_attention_heads",
    config_fields=("num_attention_heads",),
    bias_field="attention_bias",
    stream=Signal("mlp_norm", "input"),
)

BERT = Family(
    name="bert",
    model_types=("bert", "cria_bert"),
    layers="encoder.layer",
    kinds=(_BERT_FFN, _BERT_HEADS),
    cria="cria_bert",
    stock_heads="fixed",
)
ELECTRA = replace(BERT, name="electra", model_types=("electra", "cria_electra"), cria="cria_electra")
ROBERTA = replace(
    BERT,
    name="roberta",
    model_types=("roberta", "cria_roberta"),
    cria="cria_roberta",
    positions_after_padding=True,
)
XLM_ROBERTA = replace(ROBERTA, name="xlm-roberta", model_types=("xlm-roberta", "cria_xlm_roberta"), cria="cria_xlm_roberta")
CAMEMBERT = replace(ROBERTA, name="camembert", model_types=("camembert", "cria_camembert"), cria="cria_camembert")
DISTILBERT = Family(
    name="distilbert",
    model_types=("distilbert", "cria_distilbert"),
    layers="transformer.layer",
    kinds=(_DISTILBERT_FFN, _DISTILBERT_HEADS),
    cria="cria_distilbert",
    stock_heads="fixed",
)
MODERNBERT = Family(
    name="modernbert",
    model_types=("modernbert", "cria_modernbert"),
    layers="layers",
    kinds=(_MODERNBERT_FFN, _MODERNBERT_HEADS),
    cria="cria_modernbert",
    stock_heads="fixed",
)

FAMILIES = (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, ELECTRA, DISTILBERT, MODERNBERT)
