"""From requests to jobs, field by field, and from a batch's lines."""

from __future__ import annotations

from typing import Any, get_type_hints

import jsonschema_rs
import msgspec
import pytest
from llguidance import LLMatcher
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from openai.types.embedding_create_params import EmbeddingCreateParams

from penstock.messages import Completion, Done, Error, Failed, Heartbeat, ReasoningMarkers, Usage
from producer.gateway.errors import ApiError
from producer.gateway.openai.chat_request import ChatRequest
from producer.gateway.openai.completion_request import CompletionRequest
from producer.gateway.openai.embedding_request import EmbeddingRequest
from producer.gateway.openai.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, read_row, tell
from producer.gateway.openai.form import ChatForm, Form

HELLO = [{"role": "user", "content": "Hello"}]
MODELS = {
    "m": Heartbeat(
        model="m",
        phase="ready",
        at_ms=0,
        interval_ms=1,
        tool_format="hermes",
        reasoning=ReasoningMarkers(start="<think>", end="</think>", opened=False),
    )
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def job_of(endpoint: str = CHAT, **body: Any) -> Any:
    """The job of a body, as plain values."""
    whole = {"model": "m"} | ({"messages": HELLO} if endpoint == CHAT else {}) | body
    return msgspec.to_builtins(read_row(endpoint, whole, MODELS)[0])


def refusal_of(endpoint: str = CHAT, **body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        job_of(endpoint, **body)
    return caught.value


@pytest.mark.parametrize(
    ("params", "request_type"),
    [(ChatParams, ChatRequest), (TextParams, CompletionRequest), (EmbeddingCreateParams, EmbeddingRequest)],
)
def test_every_field_of_openais_client_is_known(params: Any, request_type: type[msgspec.Struct]) -> None:
    assert get_type_hints(params).keys() - set(request_type.__struct_fields__) == set()


@pytest.mark.parametrize(
    ("given", "param", "wanted"),
    [
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_completion_tokens": 5}, "max_tokens", 5),
        ({"stop": "x"}, "stop", "x"),
        ({"logit_bias": {"5": -100}}, "logit_bias", {5: -100.0}),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs", 3),
        ({"top_k": 4, "seed": 7}, "top_k", 4),
        ({"bad_words": ["x"]}, "bad_words", ["x"]),
        ({"guided_regex": "a+"}, "structured_outputs", {"regex": "a+"}),
        ({"guided_json": '{"type": "object"}'}, "structured_outputs", {"json": {"type": "object"}}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs", {"choice": ["a", "b"]}),
        ({"response_format": {"type": "json_object"}}, "structured_outputs", {"json_object": True}),
        ({"repetition_detection": {"max_pattern_size": 4}}, "repetition_detection", {"max_pattern_size": 4}),
    ],
)
def test_fields_that_the_engine_honours(given: dict[str, Any], param: str, wanted: Any) -> None:
    assert job_of(**given)["sampling_params"][param] == wanted


def test_fields_of_the_job() -> None:
    job = job_of(
        chat_template_kwargs={"a": 1},
        reasoning_effort="none",
        documents=[{"title": "t"}],
        request_id="mine",
        truncate_prompt_tokens=-1,
    )
    assert job["chat_template_kwargs"] == {"a": 1, "enable_thinking": False, "reasoning_effort": "none"}
    assert (job["documents"], job["custom_id"], job["truncate_prompt_tokens"]) == (
        [{"title": "t"}],
        "mine",
        -1,
    )


NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x"}}

IGNORED = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "modalities": ["text"],
    "verbosity": "medium",
    "priority": 0,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "spaces_between_special_tokens": True,
    "audio": None,
    "temperature": None,
    "tools": None,
    "stream_options": None,
}


def test_what_changes_nothing_changes_nothing() -> None:
    assert job_of(**IGNORED) == job_of()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"verbosity": "low"}, "verbosity"),
        ({"priority": 1}, "priority"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"chat_template": "x"}, "chat_template"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"length_penalty": 2.0}, "length_penalty"),
    ],
)
def test_what_would_change_the_answer_and_cannot_be_honoured(given: dict[str, Any], param: str) -> None:
    error = refusal_of(**given)
    assert (error.status, error.param, error.code) == (400, param, "unsupported_parameter")
    assert "is not supported: " in str(error)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),  # more digits than Python makes a number of
        ({"logit_bias": {" 1_0": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"guided_json": "{"}, "guided_json"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
        ),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], param: str) -> None:
    error = refusal_of(**given)
    assert (error.status, error.param) == (400, param), str(error)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[5], []]}, "prompt[1]"),
        ({"max_tokens": 0, "n": 2}, "n"),
    ],
)
def test_what_is_wrong_with_a_text_completion(given: dict[str, Any], param: str) -> None:
    error = refusal_of(COMPLETIONS, **({"prompt": "a"} | given))
    assert (error.status, error.param) == (400, param), str(error)


def test_a_developer_is_the_system_and_replies_can_be_sent_back() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "assistant", "content": None, "refusal": "No.", "annotations": [], "audio": None},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "hm", "function_call": None},
    ]
    found = job_of(messages=messages)["messages"]
    assert [message["role"] for message in found] == ["system", "assistant", "assistant"]
    assert found[1]["content"] == "No."
    assert found[2]["reasoning"] == "hm"


def test_a_tool_that_must_be_called_is_enforced_by_a_schema() -> None:
    job, form = read_row(
        CHAT, {"model": "m", "messages": HELLO, "tools": [TOOL], "tool_choice": "required"}, MODELS
    )
    assert isinstance(form, ChatForm)
    assert form.calls == "array"
    wanted = job.sampling_params.structured_outputs
    assert wanted is not None
    assert isinstance(wanted.json, dict)
    assert wanted.json["items"]["anyOf"][0]["properties"]["name"] == {"const": "look"}
    one = job_of(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert one["sampling_params"]["structured_outputs"]["json"]["maxItems"] == 1
    named = job_of(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look"}})
    assert named["sampling_params"]["structured_outputs"]["json"] == TOOL["function"]["parameters"]


def test_the_schema_of_a_tool_that_must_be_called_refers_to_itself() -> None:
    """As schemas that pydantic makes do. They are a part of a larger one then."""
    place = {"$defs": {"P": {"enum": ["here"]}}, "properties": {"at": {"$ref": "#/$defs/P"}}}
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    tools = [
        {"type": "function", "function": {"name": "go", "parameters": {"type": "object", **place}}},
        {"type": "function", "function": {"name": "grow", "parameters": tree}},
    ]
    schema = job_of(tools=tools, tool_choice="required")["sampling_params"]["structured_outputs"]["json"]
    assert LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema)) == ""
    check = jsonschema_rs.validator_for(schema)
    assert check.is_valid([{"name": "go", "parameters": {"at": "here"}}])
    assert not check.is_valid([{"name": "go", "parameters": {"at": "there"}}])
    assert check.is_valid([{"name": "grow", "parameters": {"next": {"next": {}}}}])
    assert not check.is_valid([{"name": "grow", "parameters": {"next": {"name": "grow"}}}])


def test_tools_of_a_model_whose_calls_nobody_can_read_are_refused() -> None:
    plain = {"m": msgspec.structs.replace(MODELS["m"], tool_format=None)}
    body = {"model": "m", "messages": HELLO, "tools": [TOOL]}
    with pytest.raises(ApiError) as caught:
        read_row(CHAT, body, plain)
    assert caught.value.code == "tools_unsupported"
    assert read_row(CHAT, body | {"tool_choice": "required"}, plain)[0].tools is not None
    assert read_row(CHAT, body | {"tool_choice": "none"}, plain)[0].tools is None


def test_a_row_of_a_batch_is_told_from_its_form_alone() -> None:
    body = {"model": "m", "messages": HELLO, "tools": [TOOL]}
    _, form = read_row(CHAT, body, {})  # no consumer has said anything yet
    kept = msgspec.json.decode(msgspec.json.encode(form), type=Form)
    assert kept == form
    text = '<think>hm</think><tool_call>{"name": "look", "arguments": {}}</tool_call>'
    done = Done(
        outputs=[Completion(text=text, finish_reason="stop")],
        usage=Usage(prompt_tokens=1, completion_tokens=2),
        model="m",
    )
    status, reply = tell(kept, "standard.1763820000000-0", done, MODELS)
    (choice,) = msgspec.to_builtins(reply)["choices"]
    assert status == 200
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert choice["message"]["reasoning"] == "hm"


def test_a_row_that_failed_has_a_status_and_openais_error() -> None:
    _, form = read_row(EMBEDDINGS, {"model": "m", "input": "x"}, MODELS)
    failed = Failed(error=Error(type="prompt_too_long", message="long"))
    status, reply = tell(form, "standard.1-0", failed, MODELS)
    assert status == 400
    assert msgspec.to_builtins(reply)["error"]["param"] == "input"


def test_what_a_batch_cannot_drive() -> None:
    assert refusal_of("/v1/images", prompt="x").param == "endpoint"
    assert refusal_of(CHAT, stream=True).code == "streaming_unsupported"
    assert "one line for each" in str(refusal_of(EMBEDDINGS, input=["a", "b"]))
