"""The probe at load: does a transformers model with our attention and cache give its own logits?

Many families run with another attention function and give wrong logits without an error: some add a bias per
head to the scores (Falcon, BLOOM, MPT), some build their masks or positions from what is not there any more
(GPT-J). So a model is run as transformers runs it, with a prompt of up to 64 tokens, before anything in it is
exchanged; and then through our path, whole, in chunks and token by token, with another sequence in the
batch. All must agree.

Not covered by running: what only begins after 64 tokens, such as a window of 4,096. There the mask that the
model asks transformers for must be the one that it tells our attention of; a mask that a model makes by
itself is refused, whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from engine.errors import UnsupportedModel
from engine.models.fallback_attention import DESCRIBING, STEP_KEYWORD, UNKNOWN_MASK, AttentionCall, Layers
from engine.models.model import KVCache, Model
from kernels.attention import AttentionMetadata, AttentionShape, LayerCache, plan_attention

PROMPT_TOKENS: Final = 64
SINGLE_TOKENS: Final = 12
"""So many tokens at the end of the prompt are computed one by one."""
BLOCK_SIZE: Final = 16
TOLERANCES: Final = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}
"""How far logits may be off, as `error_of` has it. Measured on random models of 2 layers, which are worse
than trained ones: at most 5e-5 in fp32, 0.005 in fp16, 0.05 in bf16."""


@dataclass(frozen=True, slots=True)
class _Notes:
    """An `AttentionStep` that writes down how it is called, and returns queries, which are finite."""

    calls: list[AttentionCall] = field(default_factory=list)

    def attend(self, call: AttentionCall) -> Tensor:
        self.calls.append(call)
        return call.q.contiguous()


def prompts_of(vocab_size: int, window: int) -> tuple[list[int], list[int]]:
    """Two prompts of random tokens: a long one, and one of `SINGLE_TOKENS`; shorter where the window is."""
    generator = torch.Generator().manual_seed(0)
    length = min(PROMPT_TOKENS, window)
    ids = torch.randint(0, vocab_size, (length + min(SINGLE_TOKENS, length),), generator=generator).tolist()
    return ids[:length], ids[length:]


def discover(model: Any, num_layers: int) -> Layers:
    """Runs two tokens to see how the layers call attention; it works without memory (device meta) too.

    Raises UnsupportedModel, and whatever the model's code trips over.
    """
    notes = _Notes()
    switch_attention(model, DESCRIBING)
    token_ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    # Without a padding mask transformers looks at the positions, and on meta they have no values.
    padding = torch.ones_like(token_ids)
    run_decoder(model.get_decoder(), token_ids, positions, notes, attention_mask=padding)
    called = [call.layer for call in notes.calls]
    if called != list(range(num_layers)):
        shown = ", ".join(map(str, called[:8])) + (" …" if len(called) > 8 else "") if called else "none"
        _refuse(model, f"has {num_layers} layers, but calls its attention in layers {shown}")
    found = [_masked_shape(model, call) for call in notes.calls]
    shapes = tuple(dict.fromkeys(found))
    if len({(shape.num_kv_heads, shape.head_dim) for shape in shapes}) > 1:
        _refuse(model, "has layers with different KV heads or head widths")
    return Layers(shapes, tuple(map(shapes.index, found)), tuple(call.shape for call in notes.calls))


def _masked_shape(model: Any, call: AttentionCall) -> AttentionShape:
    """The call's shape with the window of its mask, which alone counts in transformers' own attention: some
    models name a window to others only."""
    if call.mask is None:  # it asks for no mask by transformers' interface
        return call.shape
    window = int(call.mask.reshape(-1)[0]) if call.mask.numel() == 1 else UNKNOWN_MASK
    if window < 0:
        _refuse(model, f"has a mask in layer {call.layer} that is neither causal nor a window")
    if call.shape.window not in (0, window):
        _refuse(
            model,
            f"has a mask with a window of {window} (0: none) in layer {call.layer}, "
            f"but tells its attention of {call.shape.window}",
        )
    return replace(call.shape, window=window)


def switch_attention(model: Any, name: str) -> None:
    """Sets the attention implementation. Raises UnsupportedModel where transformers cannot."""
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        _refuse(model, "does not let its attention be exchanged")


def run_decoder(decoder: Any, token_ids: Tensor, positions: Tensor, step: Any, **keywords: Any) -> Tensor:
    """token_ids, positions: [1, T]. Returns the last hidden states, [1, T, hidden_size]."""
    keywords |= {STEP_KEYWORD: step}
    out = decoder(input_ids=token_ids, position_ids=positions, use_cache=False, **keywords)
    return out.last_hidden_state


def compare(model: Any, ours: Model, expected: list[Tensor], prompts: tuple[list[int], list[int]]) -> None:
    """Runs the prompts through our path in several ways. expected: [tokens, vocab_size] of each prompt, as
    transformers computes it. Raises UnsupportedModel at the first difference."""
    long, short = (len(prompt) for prompt in prompts)
    first = (long - short) * 2 // 5
    chunks = [first, long - short - first] + [1] * short
    ways = {
        "whole": [[long, 0], [0, short]],
        "in chunks and token by token": [
            list(counts) for counts in zip_longest(chunks, [1] * short, fillvalue=0)
        ],
    }
    for way, steps in ways.items():
        for want, got in zip(expected, _run_paged(ours, prompts, steps, model.device), strict=True):
            error, tolerance = error_of(got, want, ours.dtype), TOLERANCES[ours.dtype]
            if not error <= tolerance:
                _refuse(
                    model,
                    "gives other logits with our attention than with transformers' own: computed "
                    f"{way}, they are off by {error:.2g} of their spread (allowed: {tolerance:g})",
                )


def error_of(found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """Of logits [tokens, vocab_size]: how far the worst token is off, as the root mean square of its
    differences over the spread of what is expected.

    In half precision, where a rounding may send a token to another expert and change all of its logits, it is
    the worst median of a quarter of the tokens: of a quarter, as a wrong window only shows late.
    """
    spread = expected.double().std(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    errors = (found.double() - expected.double()).square().mean(dim=1).sqrt() / spread
    if dtype != torch.float32:
        errors = torch.stack([quarter.median() for quarter in errors.chunk(4)])
    return float(errors.max())  # a NaN is the greatest


class PagedPrompts:
    """Prompts that take turns in a small paged cache of their own."""

    def __init__(
        self, model: Model, prompts: Sequence[list[int]], device: torch.device, max_tokens: int
    ) -> None:
        """prompts: read when their tokens are computed, so they may grow, up to `max_tokens` each."""
        self.model = model
        self.prompts = prompts
        self.device = device
        self.computed = [0] * len(prompts)
        width = -(-max_tokens // BLOCK_SIZE)
        num_blocks = width * len(prompts)
        shape = model.attention_shapes[0]
        size = (num_blocks + 1, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
        self.cache: KVCache = [
            LayerCache(
                torch.zeros(size, dtype=model.dtype, device=device),
                torch.zeros(size, dtype=model.dtype, device=device),
            )
            for _ in range(model.num_layers)
        ]
        # The last block first, and by turns: a table that is no plain range.
        self.tables = torch.arange(num_blocks, 0, -1, dtype=torch.int32).view(width, -1).t().contiguous()

    def step(self, counts: Sequence[int]) -> list[Tensor]:
        """Computes the next `counts` tokens of the prompts, together. Returns the logits of each."""
        model, device = self.model, self.device
        ends = [done + count for done, count in zip(self.computed, counts, strict=True)]
        rows = [row for row, count in enumerate(counts) if count]
        at = [(row, position) for row in rows for position in range(self.computed[row], ends[row])]
        owners, positions = (torch.tensor(values) for values in zip(*at, strict=True))
        slots = self.tables[owners, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.tensor(
                [0, *accumulate(counts[row] for row in rows)], dtype=torch.int32, device=device
            ),
            context_lens=torch.tensor([ends[row] for row in rows], dtype=torch.int32, device=device),
            block_tables=self.tables[rows].to(device),
            slot_mapping=slots.to(device),
            block_size=BLOCK_SIZE,
            max_query_len=max(counts),
            max_context_len=max(ends),
        )
        plans = [plan_attention(model.ops, metadata, shape) for shape in model.attention_shapes]
        token_ids = torch.tensor([self.prompts[row][position] for row, position in at], device=device)
        logits = model.logits(model.forward(token_ids, positions.to(device), self.cache, plans))
        self.computed = ends
        return list(logits.split(list(counts)))


def _run_paged(
    model: Model, prompts: tuple[list[int], ...], steps: list[list[int]], device: torch.device
) -> list[Tensor]:
    """Logits of all tokens of each prompt. steps: how many tokens of each prompt every step computes."""
    running = PagedPrompts(model, prompts, device, max(map(len, prompts)))
    parts = [running.step(counts) for counts in steps]
    return [torch.cat(of_prompt) for of_prompt in zip(*parts, strict=True)]


def _refuse(model: Any, why: str) -> NoReturn:
    raise UnsupportedModel(f"architecture {type(model).__name__} is not supported: it {why}")
