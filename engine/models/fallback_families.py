"""Architectures and the transformers fallback: what is known of them, for the documentation and for tests.

The fallback itself reads none of this: what it runs is decided by the probe, when a model is loaded.
"""

from __future__ import annotations

from typing import Final

KNOWN_TO_WORK: Final = (
    "AfmoeForCausalLM",
    "ApertusForCausalLM",
    "ArceeForCausalLM",
    "BitNetForCausalLM",
    "CTRLLMHeadModel",
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "CwmForCausalLM",
    "Dots1ForCausalLM",
    "Ernie4_5ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "Exaone4ForCausalLM",
    "FlexOlmoForCausalLM",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GlmForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeSharedForCausalLM",
    "HeliumForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "HunYuanMoEV1ForCausalLM",
    "HyperCLOVAXForCausalLM",
    "MiniMaxM2ForCausalLM",
    "MinistralForCausalLM",
    "NanoChatForCausalLM",
    "OPTForCausalLM",
    "Olmo3ForCausalLM",
    "OlmoForCausalLM",
    "OlmoeForCausalLM",
    "PersimmonForCausalLM",
    "PhiForCausalLM",
    "PhimoeForCausalLM",
    "Qwen2MoeForCausalLM",
    "SeedOssForCausalLM",
    "VaultGemmaForCausalLM",
)
"""Tiny random models of these pass the probe and generate what transformers generates."""

KNOWN_TO_BE_REFUSED: Final = {
    "BartForCausalLM": "another attention",
    "CodeGenForCausalLM": "another attention",
    "DeepseekV3ForCausalLM": "compressed keys and values",
    "DiffLlamaForCausalLM": "two attentions in a layer",
    "DogeForCausalLM": "a mask that it computes",
    "FalconMambaForCausalLM": "recurrent layers",
    "GPTJForCausalLM": "another attention",
    "GPTNeoForCausalLM": "another attention",
    "GptOssForCausalLM": "attention sinks",
    "GraniteMoeHybridForCausalLM": "recurrent layers",
    "Llama4ForCausalLM": "attention within chunks",
    "MambaForCausalLM": "recurrent layers",
    "MptForCausalLM": "another attention",
    "NemotronForCausalLM": "keywords do not reach its attention",
    "Qwen3NextForCausalLM": "recurrent layers",
    "RecurrentGemmaForCausalLM": "recurrent layers",
    "StableLmForCausalLM": "another attention",
    "XGLMForCausalLM": "another attention",
}
"""And why; "another attention" means that transformers' code of it cannot call ours."""
