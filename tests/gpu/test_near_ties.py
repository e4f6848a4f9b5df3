"""The rule for near-ties excuses near-ties and nothing else."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.near_ties import check_choices, choices


def test_a_wrong_token_is_found() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(1).tolist()
    check_choices(choices(logits, best), 1e-6, "best")
    wrong = [*best[:3], int(logits[3].argsort()[-5]), best[4]]
    with pytest.raises(AssertionError, match="output 3"):
        check_choices(choices(logits, wrong), 0.01, "wrong")
    with pytest.raises(AssertionError, match="excuses anything"):
        check_choices(choices(logits, best), 10.0, "lax")
