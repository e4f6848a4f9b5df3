"""The engine by its face: ends, limits, refusals, aborts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.batch import Batch
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ConfigError, ModelError
from engine.loading import check_ranges, num_threads
from engine.request import Output, Request, RequestParams
from engine.runner import Runner
from tests.engine.run import engine_of, greedy, resumed, run, tokens_of
from tests.engine.tiny_models import VOCAB_SIZE, WINDOW, random_prompts


@pytest.fixture(scope="module")
def engine(tiny_model: Callable[[str], Path]) -> Engine:
    return engine_of(tiny_model("llama"))


def one(engine: Engine, prompt: list[int], params: RequestParams, output: list[int] | None = None) -> Output:
    """The outputs of a request alone, as one."""
    request = Request(request_id="one", prompt_token_ids=prompt, params=params, samples=resumed(output or []))
    outputs = run(engine, [request])["one"]
    return Output(
        request_id="one",
        token_ids=[token for o in outputs for token in o.token_ids],
        finish_reason=outputs[-1].finish_reason,
        stop_token_id=outputs[-1].stop_token_id,
        error=outputs[-1].error,
    )


def test_length_ends_at_max_tokens(engine: Engine) -> None:
    output = one(engine, [1, 2, 3], greedy(7))
    assert len(output.token_ids) == 7
    assert output.finish_reason == "length"
    assert output.stop_token_id is None


def test_window_ends_a_request_whose_max_tokens_go_beyond(engine: Engine) -> None:
    output = one(engine, [1] * (WINDOW - 5), greedy(100))
    assert len(output.token_ids) == 5
    assert output.finish_reason == "length"


def test_stop_token_ids_end_with_the_token(engine: Engine) -> None:
    free = one(engine, [5, 6], greedy(10)).token_ids
    stop = free[4]
    first = free.index(stop)
    output = one(
        engine, [5, 6], RequestParams(max_tokens=10, seed=0, temperature=0.0, stop_token_ids=(stop,))
    )
    assert output.token_ids == free[: first + 1]
    assert (output.finish_reason, output.stop_token_id) == ("stop", stop)


def test_stop_wins_over_length_on_the_last_token(engine: Engine) -> None:
    free = one(engine, [5, 6], greedy(1)).token_ids
    params = RequestParams(max_tokens=1, seed=0, temperature=0.0, stop_token_ids=(free[0],))
    assert one(engine, [5, 6], params).finish_reason == "stop"


def test_end_tokens_of_both_configs_end_and_may_be_ignored(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny_model("llama")
    free = one(engine_of(source), [5, 6], greedy(12)).token_ids
    folder = tmp_path / "with_eos"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"eos_token_id": null', f'"eos_token_id": {free[9]}'))
    unused = min(set(range(VOCAB_SIZE)) - set(free))
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [{free[5]}, {unused}]}}')
    engine = engine_of(folder)
    assert set(engine.eos_token_ids) == {free[9], free[5], unused}
    first = min(free.index(free[5]), free.index(free[9]))
    output = one(engine, [5, 6], greedy(12))
    assert output.token_ids == free[: first + 1]
    assert (output.finish_reason, output.stop_token_id) == ("stop", free[first])
    ignoring = RequestParams(max_tokens=12, seed=0, temperature=0.0, ignore_eos=True)
    assert one(engine, [5, 6], ignoring).token_ids == free


@pytest.mark.parametrize(
    ("prompt", "changes", "words"),
    [
        ([], {}, "the prompt has no tokens"),
        ([1] * WINDOW, {}, f"{WINDOW} tokens leave no room for output: the window is {WINDOW} tokens"),
        ([1, VOCAB_SIZE], {}, f"outside the vocabulary of {VOCAB_SIZE}"),
        ([-1], {}, "outside the vocabulary"),
        ([1], {"max_tokens": 0}, "max_tokens is 0"),
        ([1], {"temperature": float("nan")}, "temperature is nan"),
        ([1], {"temperature": -1.0}, "temperature is -1.0"),
        ([1], {"top_p": 0.0}, "top_p is 0.0"),
        ([1], {"top_p": float("nan")}, "top_p is nan"),
        ([1], {"min_p": 1.5}, "min_p is 1.5"),
        ([1], {"top_k": -1}, "top_k is -1"),
        ([1], {"top_k": 2**63}, "top_k is 9223372036854775808"),
        ([1], {"seed": -1}, "seed is -1"),
        ([1], {"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_what_cannot_run_ends_in_words_and_others_go_on(
    engine: Engine, prompt: list[int], changes: dict[str, Any], words: str
) -> None:
    alone = one(engine, [7, 8], greedy(5)).token_ids
    bad = RequestParams(**{"max_tokens": 5, "seed": 1, **changes})
    outputs = run(
        engine,
        [
            Request(request_id="before", prompt_token_ids=[7, 8], params=greedy(5)),
            Request(request_id="bad", prompt_token_ids=prompt, params=bad),
            Request(request_id="after", prompt_token_ids=[7, 8], params=greedy(5)),
        ],
    )
    assert len(outputs["bad"]) == 1
    assert words in (outputs["bad"][0].error or "")
    assert tokens_of(outputs["before"]) == tokens_of(outputs["after"]) == alone


def test_an_id_that_is_running_is_refused(engine: Engine) -> None:
    request = Request(request_id="twin", prompt_token_ids=[1], params=greedy(3))
    outputs = run(engine, [request, request])["twin"]
    assert [o.error for o in outputs if o.error] == ["a request with this id is already running"]
    assert sum(len(o.token_ids) for o in outputs) == 3


def test_resumed_output_that_has_ended_ends_at_once(engine: Engine) -> None:
    free = one(engine, [5, 6], greedy(4)).token_ids
    output = one(engine, [5, 6], greedy(4), output=free)
    assert (output.token_ids, output.finish_reason) == ([], "length")
    params = RequestParams(max_tokens=9, seed=0, stop_token_ids=(free[-1],))
    output = one(engine, [5, 6], params, output=free)
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([], "stop", free[-1])
    whole = [1] * (WINDOW - 1)
    assert one(engine, whole, greedy(9), output=[2]).finish_reason == "length"


def test_abort_frees_at_once_and_says_nothing_more(engine: Engine) -> None:
    requests = [Request(request_id=str(i), prompt_token_ids=[i], params=greedy(50)) for i in range(70)]
    engine.add(requests)
    engine.step()
    engine.abort([str(i) for i in range(69)] + ["never seen"])
    engine.scheduler.check_integrity()
    later: list[Output] = []
    while engine.has_work:
        later += engine.step()
    assert {output.request_id for output in later} == {"69"}
    assert engine.scheduler.blocks.num_free == engine.sizes.num_blocks


def test_any_order_of_adds_aborts_and_idle_steps_gives_the_tokens_of_a_fresh_engine(
    tiny_model: Callable[[str], Path],
) -> None:
    """Few blocks, so that a table that was not cleared would reach into another sequence's."""
    folder, rng = tiny_model("llama"), random.Random(1)
    prompts = random_prompts(40, longest=60, seed=9)
    asked = [Request(request_id=str(i), prompt_token_ids=p, params=greedy(8)) for i, p in enumerate(prompts)]
    expected = {name: tokens_of(o) for name, o in run(engine_of(folder), asked).items()}
    engine = engine_of(folder, num_blocks=24, max_num_seqs=8)
    outputs: dict[str, list[Output]] = {}
    count = idle = compared = 0
    live: dict[str, str] = {}

    def step() -> None:
        for output in engine.step():
            outputs[output.request_id].append(output)
            if output.finish_reason or output.error:
                live.pop(output.request_id, None)
        engine.scheduler.check_integrity()

    def add(prompt: list[int], which: str) -> None:
        nonlocal count
        count += 1
        live[f"{count}"], outputs[f"{count}"] = which, []
        engine.add([Request(request_id=f"{count}", prompt_token_ids=prompt, params=greedy(8))])

    for _ in range(60):
        for which in rng.choices(asked, k=rng.randint(1, 6)):
            add(which.prompt_token_ids, which.request_id)
        names = dict(live)
        for _ in range(rng.randint(0, 12)):
            step()
        ending = rng.choice(("abort", "refused", "finish"))
        if ending == "abort":  # what stays is nothing: the next steps are idle
            engine.abort(live)
            live.clear()
        elif ending == "refused":
            while engine.has_work:
                step()
            add([], "refused")
        while engine.has_work:
            step()
        step()
        idle += 1
        for name, which in names.items():
            if outputs[name] and outputs[name][-1].finish_reason:
                assert tokens_of(outputs[name]) == expected[which]
                compared += 1
    assert idle == 60
    assert compared > 60


def test_a_late_abort_of_the_only_request_clears_its_row(tiny_model: Callable[[str], Path]) -> None:
    engine = engine_of(tiny_model("llama"))
    alone = one(engine, [5] * 90, greedy(20)).token_ids
    engine.abort(["one"])
    assert engine.step() == []
    assert one(engine, [5] * 90, greedy(20)).token_ids == alone


def test_a_model_that_cannot_step_does_not_load(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Runner, batch: Batch) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Runner, "forward", failing)
    with pytest.raises(ModelError, match=r"was loaded but cannot run: RuntimeError.*planted"):
        engine_of(tiny_model("llama"))


def test_a_window_of_one_token_loads_and_refuses(tiny_model: Callable[[str], Path]) -> None:
    engine = engine_of(tiny_model("llama"), max_model_len=1)
    assert "the window is 1" in (one(engine, [1], greedy(1)).error or "")


def test_a_prompt_that_overflows_the_model_ends_alone_and_leaves_no_nan(
    tiny_model: Callable[[str], Path],
) -> None:
    engine = engine_of(tiny_model("llama"), max_num_seqs=8, num_blocks=12)
    alone = one(engine, [7, 8], greedy(40)).token_ids
    with torch.inference_mode():
        engine.runner.model._embedding[0] = torch.nan
    requests = [
        Request(request_id="good", prompt_token_ids=[7, 8], params=greedy(40)),
        Request(request_id="greedy", prompt_token_ids=[1, 0], params=greedy(4)),
        Request(request_id="drawn", prompt_token_ids=[0] * 30, params=RequestParams(max_tokens=4, seed=0)),
    ]
    for _ in range(4):  # so that every block has been theirs
        outputs = run(engine, requests)
        assert "not finite" in (outputs["greedy"][-1].error or "")
        assert "not finite" in (outputs["drawn"][-1].error or "")
        assert tokens_of(outputs["good"]) == alone


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_nobody_finds_the_blocks_of_a_prompt_that_overflowed(
    kv_cache_dtype: str, tiny_model: Callable[[str], Path]
) -> None:
    settings: dict[str, Any] = {"kv_cache_dtype": kv_cache_dtype, "ops": "cpu"}
    engine = engine_of(tiny_model("llama"), block_size=4, max_num_batched_tokens=64, **settings)
    begin = [1 + i % 50 for i in range(32)]
    alone = one(engine_of(tiny_model("llama"), **settings), [*begin, 7], greedy(4)).token_ids
    with torch.inference_mode():
        engine.runner.model._embedding[0] = torch.nan
    for poisoned in ([*begin, 0], [*begin, *[0] * 70, 5]):  # at once, and in chunks without a sample
        assert "not finite" in (one(engine, poisoned, greedy(4)).error or "")
        assert one(engine, [*begin, 7], greedy(4)).token_ids == alone
    scored = Request(
        request_id="s",
        prompt_token_ids=[0],
        params=RequestParams(max_tokens=0, seed=0, prompt_logprobs=0),
        kind="score",
    )
    assert "not finite" in (run(engine, [scored])["s"][-1].error or "")


def test_the_least_penalty_and_temperature_overflow_nothing(tiny_model: Callable[[str], Path]) -> None:
    engine = engine_of(tiny_model("llama"))
    for top_p in (1.0, 0.9):
        params = RequestParams(
            max_tokens=5,
            seed=1,
            temperature=0.0001,
            repetition_penalty=0.01,
            top_p=top_p,
            logit_bias={3: 1e30},
        )
        assert one(engine, [1, 2], params).token_ids == [3] * 5
    tiny = RequestParams(max_tokens=5, seed=1, repetition_penalty=1e-37)
    assert "from 0.01 to 100" in (one(engine, [1, 2], tiny).error or "")


def test_window_shrinks_to_what_the_cache_holds(tiny_model: Callable[[str], Path]) -> None:
    engine = engine_of(tiny_model("llama"), num_blocks=3, block_size=8)
    assert engine.sizes.max_model_len == 24
    assert one(engine, [1] * 20, greedy(99)).finish_reason == "length"
    assert "window is 24" in (one(engine, [1] * 24, greedy(1)).error or "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_model_len": WINDOW + 1}, "the model was made for 160 tokens"),
        ({"max_model_len": 100, "num_blocks": 2}, "the KV cache holds 32 tokens"),
        ({"kv_cache_bytes": 10}, "one block takes"),
        ({"block_size": 0}, "block_size is 0"),
        ({"max_num_seqs": -1}, "max_num_seqs is -1"),
        ({"max_model_len": -5}, r"max_model_len is -5: 0 \(derived at load\) or at least 1"),
        ({"num_blocks": -3}, "num_blocks is -3"),
        ({"kv_cache_bytes": -1}, "kv_cache_bytes is -1"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 64}, r"is 8: at least max_num_seqs \(64\) is needed"),
    ],
)
def test_settings_that_contradict_each_other(
    settings: dict[str, Any], words: str, tiny_model: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError, match=words):
        engine_of(tiny_model("llama"), **settings)


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_threads is -1"):
        check_ranges(EngineConfig(model="m", num_threads=-1))


def test_threads_come_from_config_environment_or_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert num_threads(EngineConfig(model="m", num_threads=5), 10**6) == 5
    assert num_threads(EngineConfig(model="m"), 10**6) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert num_threads(EngineConfig(model="m"), 10**6) == 1  # a small model has no work for more
    assert num_threads(EngineConfig(model="m"), 70 * 10**6) == 4
    assert num_threads(EngineConfig(model="m"), 10**9) == 8
