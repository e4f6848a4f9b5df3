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

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from engine.errors import UnsupportedModel
from engine.models.fallback_attention import DESCRIBING, UNKNOWN_MASK, STEP_KEYWORD, AttentionCall, Layers
from engine.models.model import Model
from kernels.attention import AttentionMetadata, AttentionShape, plan_attention

PROMPT_TOKENS: Final = 64
SINGLE_TOKENS: Final = 12
"""So many tokens at the end of the prompt are computed one by one."""
BLOCK_SIZE: Final = 16
TOLERANCES: Final = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
"""How far a row of logits may be off, as the root mean square of the differences over the row's spread."""


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


def discover(model: Any, decoder: Any, num_layers: int) -> Layers:
    """Runs two tokens to see how the layers call attention. `model` is the whole, `decoder` what is inside.

    Raises UnsupportedModel.
    """
    notes = _Notes()
    switch_attention(model, DESCRIBING)
    token_ids = torch.zeros((1, 2), dtype=torch.int64, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    run_decoder(decoder, token_ids, positions, notes)
    called = [call.layer for call in notes.calls]
    if called != list(range(num_layers)):
        _refuse(model, f"has {num_layers} layers, but calls its attention in layers {called or 'none'}")
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


def run_decoder(decoder: Any, token_ids: Tensor, positions: Tensor, step: Any) -> Tensor:
    """token_ids, positions: [1, T]. Returns the last hidden states, [1, T, hidden_size]."""
    out = decoder(input_ids=token_ids, position_ids=positions, use_cache=False, **{STEP_KEYWORD: step})
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
        found = _run_paged(ours, prompts, steps)
        for want, got in zip(expected, found, strict=True):
            error = relative_error(got, want)
            if not bool((error <= TOLERANCES[ours.dtype]).all()):
                worst = int(error.nan_to_num(torch.inf).argmax())
                _refuse(
                    model,
                    "gives other logits with our attention than with transformers' own: computed "
                    f"{way}, those of token {worst} are off by {float(error[worst]):.2g} of their spread",
                )


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """Of each row of logits, [rows]: root mean square of the differences, over the expected row's spread."""
    spread = expected.double().std(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return (found.double() - expected.double()).square().mean(dim=1).sqrt() / spread


def _run_paged(model: Model, prompts: tuple[list[int], ...], steps: list[list[int]]) -> list[Tensor]:
    """Logits of all tokens of each prompt. steps: of each step, how many tokens of each prompt it computes."""
    width = -(-max(len(prompt) for prompt in prompts) // BLOCK_SIZE)
    num_blocks = width * len(prompts)
    shape = model.attention_shapes[0]
    size = (num_blocks + 1, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    cache = [(torch.zeros(size, dtype=model.dtype), torch.zeros(size, dtype=model.dtype)) for _ in range(model.num_layers)]
    # Sequences take turns, last block first: a table that is no plain range.
    tables = torch.arange(num_blocks, 0, -1, dtype=torch.int32).view(width, -1).t().contiguous()
    computed = [0] * len(prompts)
    logits: list[list[Tensor]] = [[] for _ in prompts]
    for counts in steps:
        rows = [i for i, count in enumerate(counts) if count]
        token_ids = [t for i in rows for t in prompts[i][computed[i] : computed[i] + counts[i]]]
        positions = [computed[i] + j for i in rows for j in range(counts[i])]
        owners = torch.tensor([i for i in rows for _ in range(counts[i])])
        at = torch.tensor(positions)
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.tensor([0, *torch.tensor([counts[i] for i in rows]).cumsum(0)], dtype=torch.int32),
            context_lens=torch.tensor([computed[i] + counts[i] for i in rows], dtype=torch.int32),
            block_tables=tables[rows],
            slot_mapping=tables[owners, at // BLOCK_SIZE].long() * BLOCK_SIZE + at % BLOCK_SIZE,
            block_size=BLOCK_SIZE,
        )
        plans = [plan_attention(model.ops, metadata, shape) for shape in model.attention_shapes]
        hidden = model.forward(torch.tensor(token_ids), at, cache, plans)
        of_rows = model.logits(hidden).split([counts[i] for i in rows])
        for i, part in zip(rows, of_rows, strict=True):
            logits[i].append(part)
            computed[i] += counts[i]
    return [torch.cat(parts) for parts in logits]


def _refuse(model: Any, why: str) -> NoReturn:
    raise UnsupportedModel(f"architecture {type(model).__name__} is not supported: it {why}")
