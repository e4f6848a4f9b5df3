"""Messages: golden bytes, round trips, and every bad job with its words."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import (
    Completion,
    Done,
    Error,
    Event,
    Failed,
    FunctionCall,
    FunctionDefinition,
    InvalidJob,
    Job,
    Message,
    PoolingParams,
    ReasoningMarkers,
    RepetitionDetection,
    SamplingParams,
    Score,
    StructuredOutputs,
    TextPart,
    TokenLogprob,
    Tokens,
    Tool,
    ToolCall,
    TopLogprob,
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

GOLDEN_JOBS += [
    (
        b'{"prompt":"x","sampling_params":{"n":3,"min_tokens":2,"presence_penalty":0.5,"frequency_penalty":-0.5,'
        b'"repetition_penalty":1.1,"logit_bias":{"7":-100.0},"allowed_token_ids":[7,8],"bad_words":["no"],'
        b'"logprobs":2,"prompt_logprobs":0,"include_stop_str_in_output":true,"skip_special_tokens":false,'
        b'"structured_outputs":{"json":{"type":"object"}},"repetition_detection":{"max_pattern_size":8,'
        b'"min_count":4}}}',
        Job(
            prompt="x",
            sampling_params=SamplingParams(
                n=3,
                min_tokens=2,
                presence_penalty=0.5,
                frequency_penalty=-0.5,
                repetition_penalty=1.1,
                logit_bias={7: -100.0},
                allowed_token_ids=[7, 8],
                bad_words=["no"],
                logprobs=2,
                prompt_logprobs=0,
                include_stop_str_in_output=True,
                skip_special_tokens=False,
                structured_outputs=StructuredOutputs(json={"type": "object"}),
                repetition_detection=RepetitionDetection(max_pattern_size=8, min_count=4),
            ),
        ),
    ),
    *(
        (
            b'{"prompt":"x","sampling_params":{"structured_outputs":{%s}}}' % data,
            Job(prompt="x", sampling_params=SamplingParams(structured_outputs=form)),
        )
        for data, form in [
            (b'"json_object":true', StructuredOutputs(json_object=True)),
            (b'"regex":"a+"', StructuredOutputs(regex="a+")),
            (b'"choice":["yes","no"]', StructuredOutputs(choice=["yes", "no"])),
            (b'"grammar":"start: /a+/"', StructuredOutputs(grammar="start: /a+/")),
        ]
    ),
    (
        b'{"prompt":"x","kind":"score","sampling_params":{"prompt_logprobs":1}}',
        Job(prompt="x", kind="score", sampling_params=SamplingParams(prompt_logprobs=1)),
    ),
    (
        b'{"prompt":"x","kind":"embed","pooling_params":{"pooling":"mean","normalize":false}}',
        Job(prompt="x", kind="embed", pooling_params=PoolingParams(pooling="mean", normalize=False)),
    ),
]

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

GOLDEN_JOBS += [
    (
        b'{"messages":[{"role":"user","content":"1 + 2?"},{"role":"assistant","tool_calls":[{"id":"call_1",'
        b'"function":{"name":"add","arguments":"{\\"a\\":1}"},"type":"function"}],"reasoning":"hm"},'
        b'{"role":"tool","content":"3","tool_call_id":"call_1"},{"role":"assistant","reasoning":"so"}],'
        b'"tools":[{"type":"function","function":{"name":"add","description":"Adds.",'
        b'"parameters":{"type":"object"},"strict":true}},{"type":"function","function":{"name":"now"}}],'
        b'"documents":[{"title":"a","text":"b"}],"add_generation_prompt":false,"continue_final_message":true,'
        b'"add_special_tokens":false,"truncate_prompt_tokens":-1,"echo":true,'
        b'"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}',
        Job(
            messages=[
                Message(role="user", content="1 + 2?"),
                Message(
                    role="assistant",
                    tool_calls=[
                        ToolCall(id="call_1", function=FunctionCall(name="add", arguments='{"a":1}'))
                    ],
                    reasoning="hm",
                ),
                Message(role="tool", content="3", tool_call_id="call_1"),
                Message(role="assistant", reasoning="so"),
            ],
            tools=[
                Tool(
                    function=FunctionDefinition(
                        name="add", description="Adds.", parameters={"type": "object"}, strict=True
                    )
                ),
                Tool(function=FunctionDefinition(name="now")),
            ],
            documents=[{"title": "a", "text": "b"}],
            add_generation_prompt=False,
            continue_final_message=True,
            add_special_tokens=False,
            truncate_prompt_tokens=-1,
            echo=True,
            traceparent=TRACEPARENT,
        ),
    ),
]

LOGPROB = TokenLogprob(
    token_id=12,
    token="a",
    logprob=-0.5,
    rank=2,
    top_logprobs=[TopLogprob(token_id=7, token="b", logprob=-0.25)],
)

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

GOLDEN_EVENTS += [
    (
        b'{"type":"tokens","text":"a","token_ids":[12],"text_offset":0,"logprobs":[{"token_id":12,"token":"a",'
        b'"logprob":-0.5,"rank":2,"top_logprobs":[{"token_id":7,"token":"b","logprob":-0.25}]}]}',
        Tokens(text="a", token_ids=[12], text_offset=0, logprobs=[LOGPROB]),
    ),
    (
        b'{"type":"done","outputs":[{"text":"a","finish_reason":"repetition","logprobs":[{"token_id":12,'
        b'"token":"a","logprob":-0.5,"rank":2,"top_logprobs":[{"token_id":7,"token":"b","logprob":-0.25}]}]}],'
        b'"usage":{"prompt_tokens":5,"completion_tokens":1,"cached_tokens":4},"model":"tiny",'
        b'"prompt_logprobs":[{"token_id":3,"token":"c","logprob":-1.0,"rank":1}]}',
        Done(
            outputs=[Completion(text="a", finish_reason="repetition", logprobs=[LOGPROB])],
            usage=Usage(prompt_tokens=5, completion_tokens=1, cached_tokens=4),
            model="tiny",
            prompt_logprobs=[TokenLogprob(token_id=3, token="c", logprob=-1.0, rank=1)],
        ),
    ),
    (
        b'{"type":"done","outputs":[],"usage":{"prompt_tokens":2,"completion_tokens":0},"model":"tiny",'
        b'"score":{"logprob":-1.0,"tokens":[{"token_id":3,"token":"c","logprob":-1.0,"rank":1}]}}',
        Done(
            outputs=[],
            usage=Usage(prompt_tokens=2, completion_tokens=0),
            model="tiny",
            score=Score(logprob=-1.0, tokens=[TokenLogprob(token_id=3, token="c", logprob=-1.0, rank=1)]),
        ),
    ),
    (
        b'{"type":"done","outputs":[],"usage":{"prompt_tokens":2,"completion_tokens":0},"model":"tiny",'
        b'"embedding":[0.5,-0.25]}',
        Done(
            outputs=[],
            usage=Usage(prompt_tokens=2, completion_tokens=0),
            model="tiny",
            embedding=[0.5, -0.25],
        ),
    ),
    (
        b'{"type":"done","outputs":[],"usage":{"prompt_tokens":2,"completion_tokens":3,"reasoning_tokens":1},'
        b'"model":"tiny","prompt":"ab","prompt_tokens":["a","b"],"prompt_token_ids":[97,98]}',
        Done(
            outputs=[],
            usage=Usage(prompt_tokens=2, completion_tokens=3, reasoning_tokens=1),
            model="tiny",
            prompt="ab",
            prompt_tokens=["a", "b"],
            prompt_token_ids=[97, 98],
        ),
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
    more = data.replace(b'"num_running":3}', b'"num_running":3,"defaults":{"temperature":0.5}}')
    shown = msgspec.structs.replace(heartbeat, defaults={"temperature": 0.5})
    assert encode_heartbeat(shown) == more
    assert decode_heartbeat(more) == shown
    most = more.replace(
        b"0.5}}",
        b'0.5},"max_model_len":4096,"started_ms":1690000000000,"tool_format":"hermes",'
        b'"reasoning":{"start":"<think>","end":"</think>","opened":true}}',
    )
    whole = msgspec.structs.replace(
        shown,
        max_model_len=4096,
        started_ms=1690000000000,
        tool_format="hermes",
        reasoning=ReasoningMarkers(start="<think>", end="</think>", opened=True),
    )
    assert encode_heartbeat(whole) == most
    assert decode_heartbeat(most) == whole


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
    n=st.integers(1, 128),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.none() | st.floats(0.01, 100),
    logit_bias=st.dictionaries(st.integers(0, 2**31 - 1), st.floats(-100, 100), max_size=5),
    allowed_token_ids=st.none() | token_ids,
    bad_words=st.lists(text, max_size=5),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    include_stop_str_in_output=st.booleans(),
    skip_special_tokens=st.booleans(),
    structured_outputs=st.none()
    | st.builds(StructuredOutputs, regex=text)
    | st.builds(StructuredOutputs, choice=st.lists(text, min_size=1, max_size=3)),
    repetition_detection=st.none()
    | st.builds(RepetitionDetection, max_pattern_size=st.integers(1, 1024), min_count=st.integers(2, 1024)),
)
calls = st.builds(
    ToolCall, id=st.text(), function=st.builds(FunctionCall, name=st.text(), arguments=st.text())
)
contents = st.text() | st.lists(st.builds(TextPart, text=st.text()), max_size=3)
messages = st.builds(
    Message,
    role=text,
    content=contents,
    tool_calls=st.none() | st.lists(calls, max_size=2),
    tool_call_id=st.none() | st.text(),
    reasoning=st.none() | st.text(),
) | st.builds(Message, role=text, tool_calls=st.lists(calls, min_size=1, max_size=2))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
tools = st.builds(
    Tool,
    function=st.builds(
        FunctionDefinition,
        name=st.from_regex(r"\A[a-zA-Z0-9_-]{1,64}\Z"),
        description=st.none() | st.text(),
        parameters=st.none() | st.dictionaries(st.text(), json_values, max_size=2),
        strict=st.none() | st.booleans(),
    ),
)
prompts = st.one_of(
    st.fixed_dictionaries({"prompt": text}),
    st.fixed_dictionaries(
        {"messages": st.lists(messages, min_size=1, max_size=4)},
        optional={
            "tools": st.lists(tools, max_size=2),
            "documents": st.lists(st.dictionaries(st.text(), json_values, max_size=2), max_size=2),
            "add_generation_prompt": st.booleans(),
        },
    ),
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
    add_special_tokens=st.none() | st.booleans(),
    truncate_prompt_tokens=st.none() | st.just(-1) | st.integers(1, 2**40),
    echo=st.booleans(),
    traceparent=st.none() | st.just(TRACEPARENT),
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
    ("unknown parameter, nothing near", job_with(sampling_params={"zzz": 1}), "known fields: n, max_tokens,"),
    (
        "unknown field of a message",
        b'{"messages":[{"role":"user","contents":"x"}]}',
        "did you mean `content`?",
    ),
    *(
        ("unknown field of a part", b'{"messages":[{"role":"assistant","content":"x",%s}]}' % given, words)
        for given, words in (
            (b'"tool_calls":[{"id":"a","functio":{}}]', "did you mean `function`?"),
            (b'"tool_calls":[{"id":"a","function":{"name":"f","args":"{}"}}]', "did you mean `arguments`?"),
        )
    ),
    (
        "unknown field of a text part",
        b'{"messages":[{"role":"user","content":[{"texts":"x"}]}]}',
        "unknown field `texts` at `$.messages[0].content[0]`; did you mean `text`?",
    ),
    (
        "unknown field of a tool",
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"functions":{"name":"f"}}]}',
        "did you mean `function`?",
    ),
    (
        "unknown field of a function",
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f","parameter":{}}}]}',
        "did you mean `parameters`?",
    ),
    (
        "a function's odd name",
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"f()"}}]}',
        "$.tools[0].function.name",
    ),
    *(
        ("a message without content", b'{"messages":[%s]}' % given, words)
        for given, words in (
            (b'{"role":"user"}', "a message of role `user` has no `content`"),
            (b'{"role":"user","content":null,"reasoning":"x"}', "or an assistant's with `reasoning`"),
            (b'{"role":"assistant","tool_calls":[]}', "only one with `tool_calls`"),
        )
    ),
    *(
        (
            "between two fields",
            job_with(**given),
            f"`{next(iter(given))}` is for `messages`; this job has `prompt`",
        )
        for given in (
            {"tools": []},
            {"documents": []},
            {"add_generation_prompt": False},
            {"continue_final_message": True},
        )
    ),
    (
        "between two fields",
        b'{"messages":[{"role":"assistant","content":"x"}],"continue_final_message":true}',
        "to continue the last message, set `add_generation_prompt` to false",
    ),
    ("truncated to nothing", job_with(truncate_prompt_tokens=0), "`truncate_prompt_tokens` is 0"),
    ("truncated to less", job_with(truncate_prompt_tokens=-2), "its range: -1 or more"),
    *(
        ("a traceparent that is none", job_with(traceparent=given), "at `$.traceparent`")
        for given in (
            "",
            TRACEPARENT.upper(),
            TRACEPARENT.replace("00-4", "ff-4"),
            "00-" + "0" * 32 + TRACEPARENT[35:],
            TRACEPARENT[:36] + "0" * 16 + "-01",
            TRACEPARENT + "\n",
        )
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
    ("a form with no kind", job_with(sampling_params={"structured_outputs": {}}), "exactly one of `json`"),
    (
        "a form of two kinds",
        job_with(sampling_params={"structured_outputs": {"regex": "a", "choice": ["a"]}}),
        "`regex` and `choice` are given",
    ),
    (
        "unknown kind of form",
        job_with(sampling_params={"structured_outputs": {"regx": "a"}}),
        "unknown field `regx` at `$.sampling_params.structured_outputs`; did you mean `regex`?",
    ),
    ("unknown kind", job_with(kind="translate"), "Invalid enum value 'translate' - at `$.kind`"),
    (
        "between two fields",
        job_with(sampling_params={"min_tokens": 5, "max_tokens": 4}),
        "`min_tokens` is 5; it must be at most `max_tokens` (4) - at `$.sampling_params`",
    ),
    (
        "between two fields",
        job_with(sampling_params={"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 3}}),
        "`min_pattern_size` is 3; it must be at most `max_pattern_size` (2)",
    ),
    (
        "between two fields",
        job_with(kind="score", stream=True),
        "a `score` job generates nothing to `stream`",
    ),
    (
        "between two fields",
        job_with(pooling_params={"pooling": "mean"}),
        "`pooling_params` are for jobs of kind `embed`; this one is `generate`",
    ),
    (
        "between two fields",
        job_with(kind="embed", sampling_params={"prompt_logprobs": 1}),
        "an `embed` job generates nothing; leave out `prompt_logprobs`",
    ),
    *(
        (
            "between two fields",
            job_with(kind="score", sampling_params=given),
            f"a `score` job generates nothing; leave out `{next(iter(given))}`",
        )
        for given in (
            {"n": 2},
            {"max_tokens": 1},
            {"temperature": 0.0},
            {"stop": "x"},
            {"logprobs": 0},
            {"structured_outputs": {"regex": "a"}},
            {"repetition_detection": {"max_pattern_size": 2}},
        )
    ),
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


INT31 = "from 0 to 2147483647"
INT64 = "from -9223372036854775808 to 9223372036854775807"
OUT_OF_RANGE: list[tuple[str, list[Any], str]] = [
    ("n", [0, 129], "from 1 to 128"),
    ("max_tokens", [0, -1], "1 or more"),
    ("min_tokens", [-1], "0 or more"),
    ("temperature", [-0.1, 100.1], "from 0 to 100"),
    ("top_p", [0.0, -1.0, 1.01], "above 0 and at most 1"),
    ("top_k", [-2, 2**31], "from -1 to 2147483647"),
    ("min_p", [-0.1, 1.1], "from 0 to 1"),
    ("seed", [-(2**63) - 1, 2**63, 2**64, 2**70], INT64),
    ("presence_penalty", [-2.1, 2.1], "from -2 to 2"),
    ("frequency_penalty", [-2.1, 2.1], "from -2 to 2"),
    ("repetition_penalty", [0.0, -1.0, 0.009, 100.1], "from 0.01 to 100"),
    ("logit_bias", [{"1": -100.1}, {"1": 100.1}], "from -100 to 100"),
    ("logit_bias", [{"-1": 0.0}, {"2147483648": 0.0}], INT31),
    ("logit_bias", [{str(n): 0.0 for n in range(1025)}], "at most 1024 entries"),
    ("allowed_token_ids", [[]], "1 or more entries"),
    ("allowed_token_ids", [[-1], [1, 2**31]], INT31),
    ("bad_words", [["a"] * 65], "at most 64 entries"),
    ("bad_words", [[""], ["x" * 1025]], "from 1 to 1024 characters"),
    ("logprobs", [-1, 21], "from 0 to 20"),
    ("prompt_logprobs", [-1, 21], "from 0 to 20"),
    ("stop", ["", "x" * 1025, [""]], "from 1 to 1024 characters"),
    ("stop", [["a"] * 65], "at most 64 entries"),
    ("stop_token_ids", [[-1], [2**31]], INT31),
    ("stop_token_ids", [[1] * 257], "at most 256 entries"),
    ("structured_outputs", [{"choice": []}], "1 or more entries"),
    ("structured_outputs", [{"choice": [""]}, {"regex": ""}, {"grammar": ""}], "1 or more characters"),
    ("repetition_detection", [{"max_pattern_size": 0}, {"max_pattern_size": 1025}], "from 1 to 1024"),
    ("repetition_detection", [{"max_pattern_size": 9, "min_pattern_size": 0}], "from 1 to 1024"),
    ("repetition_detection", [{"max_pattern_size": 9, "min_count": 1}], "from 2 to 1024"),
]
FREE = {"include_stop_str_in_output", "ignore_eos", "skip_special_tokens"}
"""Parameters without a range."""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [(name, value, words) for name, values, words in OUT_OF_RANGE for value in values],
)
def test_a_parameter_out_of_range_is_named_with_its_range(name: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        decode_job(job_with(sampling_params={name: value}))
    assert f"$.sampling_params.{name}" in str(caught.value)
    assert str(caught.value).endswith(f"; its range: {words}")


def test_every_parameter_with_a_range_is_tested() -> None:
    assert {name for name, _, _ in OUT_OF_RANGE} | FREE == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_float_that_is_none_is_refused_at_once(name: str, value: float) -> None:
    with pytest.raises(InvalidJob, match="must be a finite number"):
        SamplingParams(**{name: value})


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


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b'{"prompt":"x","kind":"rank"}', "embed, generate, score"),
        (b'{"prompt":"x","kind":"embed","pooling_params":{"pooling":"cls"}}', "last, mean"),
        (b'{"messages":[{"role":"user","content":[{"type":"image","text":"x"}]}]}', "text"),
    ],
)
def test_a_value_that_is_none_of_those_listed_is_told_which_they_are(data: bytes, values: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        decode_job(data)
    assert str(caught.value).endswith(f"; it is one of: {values}")
