"""Every family against transformers, model by model and logit by logit. Through the engine: test_parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.paged import all_logits, load
from tests.engine.tiny_models import FAMILIES, load_transformers_model, random_prompts

PROMPTS = random_prompts(6, longest=90, seed=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, tiny_model: Callable[[str], Path]) -> None:
    """Greedy tokens forgive a factor on the logits, and one formula of GELU for another; this doesn't."""
    folder = tiny_model(family)
    longest = max(PROMPTS, key=len)
    with torch.inference_mode():
        theirs = load_transformers_model(folder)(torch.tensor([longest])).logits[0]
    for ops in ("cpu", "reference"):
        mine = all_logits(load(folder, ops=ops), longest)
        assert mine.dtype == torch.float32
        off = float((mine - theirs).abs().max() / theirs.std())
        assert off < 2e-4, f"{family}, {ops}: logits are off by {off} standard deviations"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_good_as_transformers(
    family: str, precision: str, tiny_model: Callable[[str], Path]
) -> None:
    """Where the two first choose differently, each one's token is in the other's top five; and ours are no
    farther from the logits of fp32 than theirs."""
    folder = tiny_model(family)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    transformers_model = load_transformers_model(folder, dtype)
    model, exact_model = load(folder, precision=precision), load(folder)
    my_error = their_error = 0.0
    for i, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            theirs = transformers_model(torch.tensor([prompt])).logits[0].float()
        mine, exact = all_logits(model, prompt), all_logits(exact_model, prompt)
        my_error += float((mine - exact).abs().mean())
        their_error += float((theirs - exact).abs().mean())
        for position in (mine.argmax(-1) != theirs.argmax(-1)).nonzero().flatten().tolist()[:1]:
            for one, other, whose in ((mine, theirs, "our"), (theirs, mine, "transformers'")):
                chosen = int(one[position].argmax())
                assert chosen in other[position].topk(5).indices.tolist(), (
                    f"{family}, {precision}, request {i}, position {position}: {whose} token {chosen}"
                )
    assert 0 < my_error < 1.25 * their_error, f"{family}: {my_error} off, transformers {their_error}"
