"""Sampled tokens are those of the reference operations: draws depend on seed and position alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.request import Request, RequestParams
from tests.engine.run import engine_of, run, tokens_of
from tests.gpu.device import OPS, SCALE, Scale
from tests.gpu.random_models import random_prompts

PARAMS = {
    "temperature": {"temperature": 0.8},
    "filters": {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
}


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("overlap", [0, 1])
def test_sampled_tokens_are_the_references(
    params: str,
    overlap: int,
    model_folder: Callable[[str, Scale], Path],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("verifies", "fp32")
    folder = model_folder("llama", SCALE)
    requests = [
        Request(
            request_id=str(i),
            prompt_token_ids=prompt,
            params=RequestParams(max_tokens=SCALE.max_tokens, seed=i, ignore_eos=True, **PARAMS[params]),
        )
        for i, prompt in enumerate(random_prompts(SCALE, seed=1))
    ]
    num_blocks = SCALE.num_prompts * SCALE.window // 16
    room: dict[str, Any] = {"precision": "fp32", "max_model_len": SCALE.window, "num_blocks": num_blocks}
    mine = run(engine_of(folder, ops=OPS, overlap=overlap, **room), requests)
    theirs = run(engine_of(folder, ops="reference", **room), requests)
    differing = [
        request.request_id
        for request in requests
        if tokens_of(mine[request.request_id]) != tokens_of(theirs[request.request_id])
    ]
    # A draw within a rounding of two tokens' border is one in some ten thousand.
    assert len(differing) <= 1, f"requests {differing} have other tokens"
