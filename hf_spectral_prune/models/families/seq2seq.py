"""Encoder-decoders: FFN neurons of both sides. Their attention stays whole.

Whisper is BART with an encoder of sounds. BART and those like it take the size of a head from the number of heads, which must
then be what it was; T5 has one bias for the positions of each head, made in the first layer for all of them.
"""

from __future__ import annotations

from dataclasses import replace

from .base import Family, Producer, Signal, UnitKind, UnitKindName


def _ffn(first: tuple[str, ...], second: str, size_field: str, stack: int, kind: UnitKindName = "ffn") -> UnitKind:
    """The FFN of an encoder's (0) or a decoder's layers (1)."""
    return UnitKind(
        kind=kind,
        before=Signal(first[0], "output"),
        after=Signal(second, "input"),
        producers=tuple(Producer(path) for path in first),
        consumer=second,
        size_field=size_field,
        config_fields=(size_field,),
        stream=None,
        stack=stack,
    )


def _t5(*first: str) -> tuple[UnitKind, ...]:
    """Both sides, which have one width; a decoder's layer has its attention to the encoder before its FFN."""
    places = (f"layer.{1 + stack}.DenseReluDense" for stack in (0, 1))
    return tuple(
        _ffn(tuple(f"{place}.{name}" for name in first), f"{place}.wo", "d_ff", stack) for stack, place in enumerate(places)
    )


BART = Family(
    name="bart",
    model_types=("bart",),
    layers="encoder.layers",
    decoder="decoder.layers",
    kinds=(
        _ffn(("fc1",), "fc2", "encoder_ffn_dim", 0),
        _ffn(("fc1",), "fc2", "decoder_ffn_dim", 1, "decoder_ffn"),
    ),
)
MBART = replace(BART, name="mbart", model_types=("mbart",))
PEGASUS = replace(BART, name="pegasus", model_types=("pegasus",))
MARIAN = replace(BART, name="marian", model_types=("marian",), also="OPUS-MT")
M2M_100 = replace(BART, name="m2m_100", model_types=("m2m_100",), also="NLLB")
WHISPER = replace(BART, name="whisper", model_types=("whisper",))
T5 = Family(
    name="t5",
    model_types=("t5",),
    layers="encoder.block",
    decoder="decoder.block",
    kinds=_t5("wi"),
    when=(("is_gated_act", False),),
)
T5_GATED = replace(T5, kinds=_t5("wi_0", "wi_1"), when=(("is_gated_act", True),))
MT5 = replace(T5_GATED, name="mt5", model_types=("mt5",))
UMT5 = replace(MT5, name="umt5", model_types=("umt5",))

FAMILIES = (BART, MBART, PEGASUS, MARIAN, M2M_100, WHISPER, T5, T5_GATED, MT5, UMT5)
