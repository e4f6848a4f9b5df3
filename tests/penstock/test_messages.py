"""Messages: golden bytes, round trips, and every bad job with its words."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import (
    Completion,
    Done,
    Error,
    Event,
    Failed,
    InvalidJob,
    Job,
    Message,
    SamplingParams,
    TextPart,
    Tokens,
    Usage,
)
from penstock.messages import (
    ERROR_TYPES,
    MAX_JOB_BYTES,
    Heartbeat,
    JobLabels,
    decode_event,
    decode_heartbeat,
    decode_job,
    decode_labels,
    decode_terminal,
    encode_event,
    encode_heartbeat,
    encode_job,
)

# Golden bytes: what is stored in somebody's server must be read for ever. Add lines, never change one.
GOLDEN_JOBS: list[tuple[bytes, Job]] = [
    (b'{"prompt":"Hello"}', Job(prompt="Hello")),
    (
        b'{"messages":[{"role":"system","content":"Be brief."},'
        b'{"role":"user","content":[{"text":"Hi","type":"text"}],"name":"Ada"}],'
        b'"sampling_params":{"max_tokens":16,"temperature":0.0,"top_p":0.9,"top_k":40,"min_p":0.1,'
        b'"seed":-7,"stop":["\\n","END"],"stop_token_ids":[2],"ignore_eos":true},"stream":true,"model":"tiny",'
        b'"custom_id":"row-1","batch":"nightly","row":0,"chat_template_kwargs":{"thinking":false},'
        b'"return_token_ids":true,"result_ttl_s":60}',
        Job(
            messages=[
                Message(role="system", content="Be brief."),
                Message(role="user", content=[TextPart(text="Hi")], name="Ada"),
            ],
            sampling_params=SamplingParams(
                max_tokens=16,
                temperature=0.0,
                top_p=0.9,
                top_k=40,
                min_p=0.1,
                seed=-7,
                stop=["\n", "END"],
                stop_token_ids=[2],
                ignore_eos=True,
            ),
            stream=True,
            model="tiny",
            custom_id="row-1",
            batch="nightly",
            row=0,
            chat_template_kwargs={"thinking": False},
            return_token_ids=True,
            result_ttl_s=60,
        ),
    ),
    (
        b'{"prompt_token_ids":[1,2,3],"sampling_params":{"stop":"END"}}',
        Job(prompt_token_ids=[1, 2, 3], sampling_params=SamplingParams(stop="END")),
    ),
]

GOLDEN_EVENTS: list[tuple[bytes, Event]] = [
    (
        b'{"type":"tokens","text":"Par","token_ids":[12,7],"text_offset":4,"sample":1,"fingerprint":"tiny/fp32"}',
        Tokens(text="Par", token_ids=[12, 7], text_offset=4, sample=1, fingerprint="tiny/fp32"),
    ),
    (
        b'{"type":"tokens","text":"","token_ids":[12],"text_offset":0}',
        Tokens(text="", token_ids=[12], text_offset=0),
    ),
    (
        b'{"type":"done","outputs":[{"text":"4","finish_reason":"stop","stop_reason":"END","token_ids":[52]},'
        b'{"text":"5","finish_reason":"length","index":1,"stop_reason":2}],"usage":{"prompt_tokens":5,'
        b'"completion_tokens":2},"model":"tiny","fingerprint":"tiny/fp32","custom_id":"row-1"}',
        Done(
            outputs=[
                Completion(text="4", finish_reason="stop", stop_reason="END", token_ids=[52]),
                Completion(text="5", finish_reason="length", index=1, stop_reason=2),
            ],
            usage=Usage(prompt_tokens=5, completion_tokens=2),
            model="tiny",
            fingerprint="tiny/fp32",
            custom_id="row-1",
        ),
    ),
    (
        b'{"type":"failed","error":{"type":"cancelled","message":"the job was cancelled","retryable":false},'
        b'"custom_id":"row-1"}',
        Failed(error=Error(type="cancelled", message="the job was cancelled"), custom_id="row-1"),
    ),
]


@pytest.mark.parametrize(("data", "job"), GOLDEN_JOBS)
def test_golden_jobs(data: bytes, job: Job) -> None:
    assert encode_job(job) == data
    assert decode_job(data) == job


@pytest.mark.parametrize(("data", "event"), GOLDEN_EVENTS)
def test_golden_events(data: bytes, event: Event) -> None:
    assert encode_event(event) == data
    assert decode_event(data) == event
    if not isinstance(event, Tokens):
        assert decode_terminal(data) == event


def test_golden_heartbeat() -> None:
    data = b'{"model":"tiny","phase":"ready","at_ms":1700000000000,"interval_ms":5000,'
    data += b'"max_num_seqs":64,"num_running":3}'
    heartbeat = Heartbeat(
        model="tiny", phase="ready", at_ms=1700000000000, interval_ms=5000, max_num_seqs=64, num_running=3
    )
    assert encode_heartbeat(heartbeat) == data
    assert decode_heartbeat(data) == heartbeat
    assert heartbeat.alive(1700000015000)
    assert not heartbeat.alive(1700000015001)


text = st.text(min_size=1, max_size=50)  # hypothesis leaves out lone surrogates, as UTF-8 does
token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
sampling_params = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 2**31),
    temperature=st.none() | st.floats(0, 100),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    top_k=st.none() | st.integers(-1, 2**31 - 1),
    min_p=st.none() | st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    stop=text | st.lists(text, max_size=64),
    stop_token_ids=token_ids,
    ignore_eos=st.booleans(),
)
messages = st.builds(
    Message, role=text, content=st.text() | st.lists(st.builds(TextPart, text=st.text()), max_size=3)
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
prompts = st.one_of(
    st.fixed_dictionaries({"prompt": text}),
    st.fixed_dictionaries({"messages": st.lists(messages, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"prompt_token_ids": token_ids}),
)
jobs = st.builds(
    lambda prompt, **others: Job(**prompt, **others),
    prompts,
    sampling_params=sampling_params,
    stream=st.booleans(),
    custom_id=st.none() | st.text(max_size=512),
    batch=st.none() | st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z"),
    row=st.none() | st.integers(0, 2**53 - 1),
    chat_template_kwargs=st.dictionaries(st.text(), json_values, max_size=3),
    result_ttl_s=st.none() | st.integers(1, 30 * 86400),
)


@given(jobs)
def test_jobs_survive_the_wire(job: Job) -> None:
    data = encode_job(job)
    assert decode_job(data) == job
    assert decode_job(json.dumps(json.loads(data))) == job  # as another language may write it
    assert decode_labels(data) == JobLabels(custom_id=job.custom_id, batch=job.batch, row=job.row)


@given(
    st.builds(Tokens, text=st.text(), token_ids=token_ids, text_offset=st.integers(0, 2**40))
    | st.builds(
        Done,
        outputs=st.lists(
            st.builds(Completion, text=st.text(), finish_reason=st.sampled_from(["stop", "length"]))
        ),
        usage=st.builds(Usage, prompt_tokens=st.integers(0), completion_tokens=st.integers(0, 2**40)),
        model=st.text(),
        custom_id=st.none() | st.text(),
    )
    | st.builds(Failed, error=st.builds(Error, type=st.sampled_from(sorted(ERROR_TYPES)), message=st.text()))
)
def test_events_survive_the_wire(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    decode_labels(data)
    with contextlib.suppress(InvalidJob):
        decode_job(data)


def job_with(**fields: Any) -> bytes:
    return json.dumps({"prompt": "x", **fields}).encode()


BAD_JOBS: list[tuple[str, bytes, str]] = [
    ("not JSON", b"hello", "not valid JSON in UTF-8"),
    ("nothing", b"", "not valid JSON in UTF-8"),
    ("cut off", b'{"prompt":"x"', "not valid JSON in UTF-8"),
    ("not an object", b'["x"]', "Expected `object`, got `array`"),
    ("unknown field", job_with(max_token=5), "unknown field `max_token` at `$`"),
    ("unknown field", job_with(promt="x"), "did you mean `prompt`?"),
    (
        "unknown parameter",
        job_with(sampling_params={"temprature": 1}),
        "unknown field `temprature` at `$.sampling_params`; did you mean `temperature`?",
    ),
    ("unknown parameter, nothing near", job_with(sampling_params={"zzz": 1}), "known fields: max_tokens,"),
    (
        "unknown field of a message",
        b'{"messages":[{"role":"user","contents":"x"}]}',
        "did you mean `content`?",
    ),
    ("a long unknown field", job_with(**{"x" * 1_000_000: 1}), "unknown field `xxx"),
    ("an odd unknown field", job_with(**{"\n" * 1_000_000: 1}), "unknown field"),
    (
        "two prompts",
        job_with(messages=[{"role": "user", "content": "x"}]),
        "`prompt` and `messages` are given",
    ),
    (
        "three prompts",
        job_with(messages=[], prompt_token_ids=[]),
        "`prompt` and `messages` and `prompt_token_ids`",
    ),
    ("no prompt", b"{}", "none is given"),
    ("null prompt", b'{"prompt":null}', "none is given"),
    ("empty prompt", b'{"prompt":""}', "`prompt` is empty"),
    ("no messages", b'{"messages":[]}', "`messages` is empty"),
    ("no tokens", b'{"prompt_token_ids":[]}', "`prompt_token_ids` is empty"),
    ("prompt of another type", b'{"prompt":5}', "Expected `str | null`, got `int` - at `$.prompt`"),
    ("NaN", b'{"prompt":"x","sampling_params":{"temperature":NaN}}', "not valid JSON"),
    ("infinity", b'{"prompt":"x","sampling_params":{"temperature":1e999}}', "Number out of range"),
    (
        "negative temperature",
        job_with(sampling_params={"temperature": -0.1}),
        "$.sampling_params.temperature",
    ),
    ("top_p of zero", job_with(sampling_params={"top_p": 0}), "$.sampling_params.top_p"),
    ("negative max_tokens", job_with(sampling_params={"max_tokens": -1}), "Expected `int` >= 1"),
    ("negative token", b'{"prompt_token_ids":[1,-1]}', "$.prompt_token_ids["),
    ("huge token", b'{"prompt_token_ids":[4294967296]}', "$.prompt_token_ids["),
    ("huge seed", b'{"prompt":"x","sampling_params":{"seed":1' + b"0" * 40 + b"}}", "seed"),
    ("negative row", job_with(row=-1), "Expected `int` >= 0 - at `$.row`"),
    (
        "1000 stops",
        job_with(sampling_params={"stop": ["a"] * 1000}),
        "length <= 64 - at `$.sampling_params.stop`",
    ),
    ("an empty stop", job_with(sampling_params={"stop": [""]}), "length >= 1"),
    ("bad batch name", job_with(batch="a:done"), "at `$.batch`"),
    ("10 MB of text", b'{"prompt":"' + b"x" * 10_000_000 + b'"}', f"the limit is {MAX_JOB_BYTES}"),
    ("invalid UTF-8", b'{"prompt":"\xff\xfe"}', "not valid JSON in UTF-8"),
    ("a lone surrogate", b'{"prompt":"\\ud800"}', "not valid JSON in UTF-8"),
    (
        "nesting",
        b'{"prompt":"x","chat_template_kwargs":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        "nested too deeply",
    ),
]


@pytest.mark.parametrize(("data", "words"), [bad[1:] for bad in BAD_JOBS], ids=[bad[0] for bad in BAD_JOBS])
def test_bad_jobs_are_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        decode_job(data)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    decode_labels(data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Job(),
        lambda: Job(prompt="x", prompt_token_ids=[1]),
        lambda: Job(prompt=""),
        lambda: SamplingParams(temperature=float("nan")),
        lambda: SamplingParams(top_p=float("inf")),
        lambda: encode_job(Job(prompt="x", sampling_params=SamplingParams(temperature=-1.0))),
        lambda: encode_job(Job(prompt="x", sampling_params=SamplingParams(seed=2**64))),
        lambda: encode_job(Job(prompt="\ud800")),
        lambda: encode_job(Job(prompt="x", chat_template_kwargs={"a": object()})),
        lambda: encode_job(Job(prompt=5)),  # type: ignore[arg-type] - the wrong type is the test
    ],
)
def test_bad_jobs_made_in_python_are_refused_before_sending(make: Any) -> None:
    with pytest.raises(InvalidJob):
        make()


def test_labels_of_bad_jobs() -> None:
    def labels(data: bytes) -> tuple[Any, ...]:
        found = decode_labels(data)
        return found.custom_id, found.batch, found.row

    assert labels(b'{"custom_id":"a","batch":"b","row":3,"what":1}') == ("a", "b", 3)
    assert labels(b'{"custom_id":5,"batch":"b","row":-1}') == (None, "b", None)
    assert labels(b'{"custom_id":"a","batch":"b:done","row":1.5}') == ("a", None, None)
    assert labels(b'{"batch":"b\\n"}') == (None, None, None)
    assert labels(b"nonsense") == (None, None, None)


def test_stop_is_a_list_whichever_way_it_was_given() -> None:
    assert SamplingParams(stop="END").stop_strings == ["END"]
    assert SamplingParams(stop=["a", "b"]).stop_strings == ["a", "b"]
    assert SamplingParams().stop_strings == []
