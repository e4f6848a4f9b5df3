"""Which family runs how, as a page: `python -m engine.models.families_table > docs/families.md`.

The features are those of the specs that transformers' own default configs give; the rows' `variants` name
what a config may ask for beside them.
"""

from __future__ import annotations

import sys
from typing import Any

from engine.models.fallback_families import KNOWN_TO_BE_REFUSED, KNOWN_TO_WORK
from engine.models.families import FAMILIES, Family, spec_of
from engine.models.families.fields import ROPE_TYPES
from engine.models.spec import DecoderSpec, LayerSpec

_HEAD = """# Which families run, and how

This page is generated (`python -m engine.models.families_table > docs/families.md`) from the specs in
`engine/models/families` and checked by a test.

**Native** families run in the one decoder of `engine/models/decoder.py`. Their tiny random models give the
tokens that transformers gives, in fp32, whole, in chunks, preempted and in any batch; in bf16 and fp16 they
are no farther from fp32 than transformers is. The tensor names and shapes of one hub checkpoint per family,
written down by hand, are tested (`tests/engine/fixtures/headers`). The table shows what each config class
defaults to: Llama 3, Qwen2.5 and Granite 3 have grouped KV heads.

"""
_NOTES = f"""
Rotary positions are computed in the kinds {", ".join(f"`{kind}`" for kind in ROPE_TYPES)}.
Two things differ from transformers:
- longrope (Phi-3 with 128k) runs in its original window only, by the short factors. The long ones turn every
  token of a sequence anew when it outgrows that window: its cache would have to be thrown away.
- Falcon RW's alibi: transformers rounds every product of slope and position to bf16; here only the slopes are
  rounded, so that far positions stay apart.

Refused, in words: quantized checkpoints, attention that is not causal, cross attention, pickled weights.

## By the transformers fallback

Any other architecture that transformers loads as a causal language model runs with transformers' own code
around our attention and our cache, if it passes a probe when it is loaded: our attention is called once per
layer, and chunked logits equal whole ones. Of tiny random models these pass, and generate what transformers
generates:

"""
_REFUSED = """
These are refused:

| architecture | because of |
|---|---|
"""


def page() -> str:
    """The whole page, Markdown."""
    rows = [
        "| architecture | models | positions | attention | block | MLP | and if the config says so |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, family) for name, family in FAMILIES.items()),
    ]
    refused = "".join(f"| `{name}` | {why} |\n" for name, why in KNOWN_TO_BE_REFUSED.items())
    return (
        _HEAD
        + "\n".join(rows)
        + "\n"
        + _NOTES
        + ", ".join(f"`{name}`" for name in KNOWN_TO_WORK)
        + ".\n"
        + _REFUSED
        + refused
    )


def _row(name: str, family: Family) -> str:
    from transformers import AutoConfig

    config: Any = AutoConfig.for_model(family.model_type)
    config.architectures = [name]
    spec = spec_of(config)
    derived = (_positions(spec), _attention(spec), _block(spec), _mlp(spec))
    return "| " + " | ".join((f"`{name}`", family.models, *derived, family.variants)) + " |"


def _positions(spec: DecoderSpec) -> str:
    ropes = [layer.rope for layer in spec.layers]
    turned = {rope for rope in ropes if rope is not None}
    if not turned:
        if any(param.name == "positions" for param in spec.outer_params):
            return "learned"
        return "alibi" if spec.layers[0].attention.alibi_slopes else "none"
    parts = ["rotary"]
    rotary_dim = next(iter(turned)).rotary_dim
    if rotary_dim < spec.head_dim:
        parts.append(f"{rotary_dim} of {spec.head_dim} dimensions")
    if len(turned) > 1:
        parts.append("other angles in windowed layers")
    if None in ropes:
        parts.append(f"none in {ropes.count(None)} of {len(ropes)} layers")
    return ", ".join(parts)


def _attention(spec: DecoderSpec) -> str:
    shape = spec.layers[0].attention
    if shape.num_kv_heads == shape.num_heads:
        parts = ["a KV head per head"]
    else:
        parts = ["one KV head"] if shape.num_kv_heads == 1 else ["grouped KV heads"]
    windowed = [layer for layer in spec.layers if layer.attention.window]
    if windowed:
        some = "" if len(windowed) == spec.num_layers else f" in {len(windowed)} of {spec.num_layers} layers"
        parts.append(f"sliding window{some}")
    if shape.soft_cap:
        parts.append("soft cap")
    if spec.qk_norm != "none":
        parts.append("queries and keys normed " + ("by head" if spec.qk_norm == "head" else "whole"))
    if any(param.name == "qkv_bias" for param in spec.layers[0].params):
        parts.append("biases")
    return ", ".join(parts)


def _block(spec: DecoderSpec) -> str:
    names = {param.name for param in spec.layers[0].params}
    norm = {"rms": "RMS norm", "layer": "layer norm"}[spec.norm]
    wiring = spec.wiring
    if wiring == "parallel":
        wiring += ", two norms" if "mlp_norm" in names else ", one norm"
    return f"{wiring}, {norm}"


def _mlp(spec: DecoderSpec) -> str:
    activation = spec.activation.replace("_", " ")
    kinds = {layer.mlp: layer for layer in spec.layers}
    return " and ".join(_mlp_kind(spec, layer, activation) for layer in kinds.values())


def _mlp_kind(spec: DecoderSpec, layer: LayerSpec, activation: str) -> str:
    if layer.mlp == "moe":
        assert spec.moe is not None, "experts without a way to them"
        return f"{spec.moe.top_k} of {spec.moe.num_experts} experts, {activation}"
    return f"{layer.mlp}, {activation}"


if __name__ == "__main__":
    sys.stdout.write(page())
