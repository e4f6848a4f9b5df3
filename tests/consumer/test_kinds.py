"""Jobs with a form to keep, and jobs that score or embed a text, through a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from penstock.client import Client
from penstock.errors import JobFailed
from penstock.keys import Keys
from penstock.messages import Done, Job, SamplingParams, StructuredOutputs, decode_heartbeat
from tests.consumer.models import save_model
from tests.consumer.running import consuming

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def outcome(redis_url: str, model: Path, job: Job) -> Done:
    async with Client(redis_url) as client, consuming(redis_url, model):
        return await client.result(await client.submit(job), timeout=10)


def structured(wanted: StructuredOutputs, **fields: Any) -> Job:
    return Job(prompt="x", sampling_params=SamplingParams(structured_outputs=wanted, **fields))


async def test_a_score_is_the_sum_over_the_prompt(redis_url: str, tmp_path: Path) -> None:
    job = Job(prompt="abcd", kind="score", custom_id="s", sampling_params=SamplingParams(prompt_logprobs=1))
    done = await outcome(redis_url, save_model(tmp_path / "model"), job)
    assert done.score is not None
    assert [token.token for token in done.score.tokens] == ["b", "c", "d"]
    assert [len(token.top_logprobs) for token in done.score.tokens] == [1, 1, 1]
    assert done.score.logprob == -sum(b"bcd") / 64
    assert (done.outputs, done.text, done.embedding, done.prompt_logprobs) == ([], "", None, None)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.cached_tokens) == (4, 0, 2)
    assert done.custom_id == "s"


async def test_an_embedding_is_the_engines_vector(redis_url: str, tmp_path: Path) -> None:
    done = await outcome(redis_url, save_model(tmp_path / "model"), Job(prompt="abcd", kind="embed"))
    assert (done.embedding, done.score, done.outputs) == ([4.0, 0.5], None, [])
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (4, 0)


async def test_a_kind_survives_the_engines_death(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"die_after_tokens": 3, "step_s": 0.002})
    async with Client(redis_url) as client, consuming(redis_url, model):
        generating = await client.submit(Job(prompt="x", sampling_params=SamplingParams(max_tokens=30)))
        scores = await client.submit_many([Job(prompt="abcd", kind="score") for _ in range(5)])
        for job_id in scores:
            assert (await client.result(job_id, timeout=20)).score is not None
        assert len((await client.result(generating, timeout=20)).text) == 30


async def test_what_has_its_form_is_given(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"says": '{"a": 1}'})
    # The end token's text, asked for, is no part of what is checked.
    job = structured(
        StructuredOutputs(json=SCHEMA), include_stop_str_in_output=True, skip_special_tokens=False
    )
    done = await outcome(redis_url, model, job)
    assert (done.text, done.outputs[0].finish_reason) == ('{"a": 1}</s>', "stop")


async def test_what_lacks_its_form_is_a_failure_in_words(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"says": '{"a": tru'})
    with pytest.raises(JobFailed) as failed:
        await outcome(redis_url, model, structured(StructuredOutputs(json=SCHEMA)))
    assert failed.value.error.type == "invalid_output"
    assert failed.value.error.message
    with pytest.raises(JobFailed, match="output 0: ") as failed:
        await outcome(redis_url, model, structured(StructuredOutputs(json=SCHEMA), n=2))
    assert failed.value.error.type == "invalid_output"


async def test_what_was_cut_off_is_given_as_it_is(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"says": '{"a": 1}'})
    done = await outcome(redis_url, model, structured(StructuredOutputs(json=SCHEMA), max_tokens=4))
    assert (done.text, done.outputs[0].finish_reason) == ('{"a"', "length")
    done = await outcome(redis_url, model, structured(StructuredOutputs(json=SCHEMA), stop=":"))
    assert (done.text, done.outputs[0].stop_reason) == ('{"a"', ":")


async def test_a_grammar_that_cannot_be_compiled_fails_its_own_job(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"step_s": 0.002})
    async with Client(redis_url) as client, consuming(redis_url, model):
        good = await client.submit(Job(prompt="x", sampling_params=SamplingParams(max_tokens=20)))
        bad = await client.submit(structured(StructuredOutputs(regex="nonsense"), n=2))
        with pytest.raises(JobFailed, match="nonsense is no grammar") as failed:
            await client.result(bad, timeout=10)
        assert len((await client.result(good, timeout=10)).text) == 20
    assert failed.value.error.type == "invalid_job"


async def test_the_models_own_defaults_are_shown(
    redis: Redis, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_model(tmp_path / "model")
    config = {"temperature": 0.6, "top_k": 20, "top_p": 1.0, "max_new_tokens": 3}
    (model / "generation_config.json").write_text(json.dumps(config))
    caplog.set_level("INFO")
    async with Client(redis_url) as client, consuming(redis_url, model):
        done = await client.result(await client.submit(Job(prompt="x")), timeout=10)
        beats = await redis.hgetall(Keys().consumers)
    assert done.usage.completion_tokens == 3
    assert "the model's own sampling defaults: temperature 0.6, top_k 20, max_tokens 3" in caplog.text
    (beat,) = map(decode_heartbeat, beats.values())
    assert beat.defaults == {"temperature": 0.6, "top_k": 20, "max_tokens": 3}
