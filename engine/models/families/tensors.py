"""Short ways to name the checkpoint tensors of a parameter."""

from __future__ import annotations

from collections.abc import Iterable

from engine.models.spec import Param, Split


def linear(
    name: str, modules: Iterable[tuple[str, int]], columns: int, *, bias: bool, split: Split = "rows"
) -> list[Param]:
    """A linear layer [rows, columns] that fuses one or several modules, each named with its rows."""
    modules = list(modules)
    rows = sum(count for _, count in modules)
    stored = [(count, columns) if split != "transposed" else (columns, count) for _, count in modules]
    weights = tuple((f"{module}.weight", shape) for (module, _), shape in zip(modules, stored, strict=True))
    params = [Param(name=name, shape=(rows, columns), sources=weights, split=split)]
    if bias:
        sources = tuple((f"{module}.bias", (count,)) for module, count in modules)
        bias_split: Split = "rows" if split == "transposed" else split
        params.append(Param(name=f"{name}_bias", shape=(rows,), sources=sources, split=bias_split))
    return params


def matrix(name: str, tensor: str, rows: int, columns: int) -> Param:
    """A tensor that is a parameter as it is."""
    return Param(name=name, shape=(rows, columns), sources=((tensor, (rows, columns)),))


def norm(name: str, module: str, size: int, *, bias: bool = False, offset: float = 0.0) -> list[Param]:
    """A norm's weight, and its bias."""
    weight = ((f"{module}.weight", (size,)),)
    params = [Param(name=name, shape=(size,), sources=weight, offset=offset, float32=True)]
    if bias:
        sources = ((f"{module}.bias", (size,)),)
        params.append(Param(name=f"{name}_bias", shape=(size,), sources=sources, float32=True))
    return params


def experts(
    moe: str, names: tuple[str, str, str], sizes: tuple[int, int, int], fused: str
) -> tuple[Param, Param]:
    """The stacked matrices of all experts: gate and up [E, 2 I, H], down [E, H, I].

    moe: the module that holds `experts`; names: of the gate, up and down of one; sizes: (E, I, H);
    fused: the module of checkpoints that hold each stack as one tensor, as transformers has it in memory.
    """
    num_experts, inner, hidden = sizes
    gate, up, down = names
    prefixes = [f"{moe}.experts.{e}" for e in range(num_experts)]
    gate_up = tuple(
        (f"{prefix}.{part}.weight", (inner, hidden)) for prefix in prefixes for part in (gate, up)
    )
    stacked_gate_up, stacked_down = (num_experts, 2 * inner, hidden), (num_experts, hidden, inner)
    return (
        Param(
            name="experts_gate_up",
            shape=stacked_gate_up,
            sources=gate_up,
            alternatives=(((f"{fused}.experts.gate_up_proj", stacked_gate_up),),),
        ),
        Param(
            name="experts_down",
            shape=stacked_down,
            sources=tuple((f"{prefix}.{down}.weight", (hidden, inner)) for prefix in prefixes),
            alternatives=(((f"{fused}.experts.down_proj", stacked_down),),),
        ),
    )
