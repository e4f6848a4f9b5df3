"""The op set for NVIDIA GPUs, in Triton; dense products stay with cuBLAS.

Nothing here waits for the device or copies from it, and no launch depends on what the device holds, so that
steps can be recorded in CUDA graphs. The same kernels run on a processor in Triton's interpreter
(TRITON_INTERPRET=1), in float32: its bfloat16 products are wrong.
"""

from __future__ import annotations

from kernels.opset import OpSet
from kernels.triton.activation import act_and_mul, activate
from kernels.triton.argmax import argmax
from kernels.triton.attention import attention, plan_attention
from kernels.triton.linear import linear, pack_linear
from kernels.triton.logprob import top_logprobs
from kernels.triton.mask import apply_bitmask
from kernels.triton.moe import moe, pack_experts, route
from kernels.triton.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.triton.penalty import apply_penalties
from kernels.triton.philox import philox, uniform
from kernels.triton.qkv import rotate_and_store, store_kv
from kernels.triton.rotary import rotary
from kernels.triton.sample import sample


def make_op_set() -> OpSet:
    """Every operation on tensors of a CUDA device, or of the processor where Triton interprets."""
    return OpSet(
        name="triton",
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        layer_norm=layer_norm,
        add_layer_norm=add_layer_norm,
        rotary=rotary,
        act_and_mul=act_and_mul,
        activate=activate,
        pack_linear=pack_linear,
        linear=linear,
        pack_experts=pack_experts,
        route=route,
        moe=moe,
        store_kv=store_kv,
        rotate_and_store=rotate_and_store,
        plan_attention=plan_attention,
        attention=attention,
        philox=philox,
        uniform=uniform,
        argmax=argmax,
        sample=sample,
        apply_bitmask=apply_bitmask,
        apply_penalties=apply_penalties,
        top_logprobs=top_logprobs,
        is_recordable=True,
    )
