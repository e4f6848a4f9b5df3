"""The op set for processors, in which a row's result does not depend on its batch: C++ where it was compiled,
and torch operations chosen for it elsewhere.

What was measured and decided is said in the file of each operation.
"""

from __future__ import annotations

import ctypes
import logging
from functools import partial

import torch

from kernels.cpu import native
from kernels.cpu.activation import act_and_mul, activate
from kernels.cpu.activations import Activations
from kernels.cpu.argmax import argmax
from kernels.cpu.attention import CpuAttention
from kernels.cpu.calls import Calls
from kernels.cpu.elements import Elements
from kernels.cpu.elementwise import (
    add_layer_norm,
    add_rms_norm,
    layer_norm,
    rms_norm,
    rotary,
    rotate_and_store,
    store_kv,
)
from kernels.cpu.heads import Heads
from kernels.cpu.linear import choose_linear
from kernels.cpu.logits import Logits
from kernels.cpu.logprob import top_logprobs
from kernels.cpu.mask import apply_bitmask
from kernels.cpu.moe import CpuExperts, route
from kernels.cpu.norms import Norms
from kernels.cpu.packed import PackedLinear
from kernels.cpu.paged import MOST_CHANNELS, PagedAttention
from kernels.cpu.penalty import apply_penalties
from kernels.cpu.philox import philox, uniform
from kernels.cpu.recording import record
from kernels.cpu.sample import sample
from kernels.opset import OpSet

log = logging.getLogger(__name__)


def load(stored: torch.dtype | None, head_dim: int) -> OpSet:
    """The fastest there is for this processor, and for heads of so many channels."""
    library = native.load()
    if library is not None and head_dim > MOST_CHANNELS:
        log.warning(
            "heads have %d channels, and the C++ kernels take %d: plain torch computes, which is slower",
            *(head_dim, MOST_CHANNELS),
        )
        library = None
    return make_op_set(library, stored)


def make_op_set(library: ctypes.CDLL | None, stored: torch.dtype | None = None) -> OpSet:
    """library: the C++ kernels, see `kernels.cpu.native.load`; without one, the fastest of what this build of
    torch has. What that lacks is said in the log. stored: what weights are packed as; None: as they come."""
    return _of_torch(stored) if library is None else _of_library(library, stored)


def _of_torch(stored: torch.dtype | None) -> OpSet:
    pack_linear, linear = choose_linear()
    if stored == torch.int8:
        log.warning("linear layers in 8 bits need the C++ kernels: their weights stay in 16 bits")
    if not torch.backends.mkl.is_available():
        log.warning(
            "this torch has no MKL: attention was not checked for it, "
            "and a sequence's tokens may depend on what else is in the batch"
        )
    attention = CpuAttention()
    experts = CpuExperts(pack_linear, linear, act_and_mul)
    return OpSet(
        name="cpu",
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        layer_norm=layer_norm,
        add_layer_norm=add_layer_norm,
        rotary=rotary,
        act_and_mul=act_and_mul,
        activate=activate,
        pack_linear=pack_linear,
        linear=linear,
        pack_experts=experts.pack,
        route=route,
        moe=experts.run,
        store_kv=store_kv,
        rotate_and_store=rotate_and_store,
        plan_attention=attention.plan,
        attention=attention.run,
        philox=philox,
        uniform=uniform,
        argmax=argmax,
        sample=sample,
        apply_bitmask=apply_bitmask,
        apply_penalties=apply_penalties,
        top_logprobs=top_logprobs,
        reads_past_context=True,
    )


def _of_library(library: ctypes.CDLL, stored: torch.dtype | None) -> OpSet:
    calls = Calls(library)
    linears, attention = PackedLinear(calls, stored), PagedAttention(calls)
    norms, activations, heads = Norms(calls), Activations(calls), Heads(calls)
    elements, logits = Elements(calls), Logits(library)
    experts = CpuExperts(linears.pack, linears.run, activations.act_and_mul)
    return OpSet(
        name="cpu",
        rms_norm=norms.rms_norm,
        add_rms_norm=norms.add_rms_norm,
        layer_norm=norms.layer_norm,
        add_layer_norm=norms.add_layer_norm,
        rotary=heads.rotary,
        act_and_mul=activations.act_and_mul,
        activate=activations.activate,
        pack_linear=linears.pack,
        linear=linears.run,
        pack_experts=experts.pack,
        route=route,
        moe=experts.run,
        store_kv=heads.store_kv,
        rotate_and_store=heads.rotate_and_store,
        plan_attention=attention.plan,
        attention=attention.run,
        philox=philox,
        uniform=logits.uniform,
        argmax=logits.argmax,
        sample=logits.sample,
        apply_bitmask=logits.apply_bitmask,
        apply_penalties=apply_penalties,
        top_logprobs=logits.top_logprobs,
        computes_in=torch.float32,
        pack_router=PackedLinear(calls).pack if stored == torch.int8 else None,
        copies_weights=True,
        rows=linears.rows,
        take=elements.take,
        add=elements.add,
        scale=elements.scale,
        copy=elements.copy,
        record=partial(record, calls),
        stores_by_head=True,
    )
