"""What requests for text have in common: OpenAI's fields, and vLLM's beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from penstock.sampling import MAX_LOGPROBS, MAX_SAMPLES, RepetitionDetection, TokenId

Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: the usage so far in every chunk."""
    include_obfuscation: bool | None = None
    """Nothing is padded here."""


class JsonSchema(Struct, frozen=True, forbid_unknown_fields=True):
    """A schema for the output."""

    name: str
    schema_: dict[str, Any] | bool | None = field(default=None, name="schema")
    description: str | None = None
    strict: bool | None = None
    """The schema is enforced either way."""


class TextFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchemaFormat(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON by a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputsFields(Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's field `structured_outputs`: exactly one of these."""

    json: dict[str, Any] | str | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class TextRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of both endpoints that write text. None is the model's default."""

    model: Annotated[str, Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    # vLLM's
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    """Changes nothing: the tokenizers' own decoding never puts any there."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    prompt_logprobs: Logprobs | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    bad_words: list[str] | None = None
    add_special_tokens: bool | None = None
    structured_outputs: StructuredOutputsFields | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    repetition_detection: RepetitionDetection | None = None
    request_id: Annotated[str, Meta(max_length=512)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # Only what changes nothing; see unsupported.py
    priority: Literal[0] | None = None
    use_beam_search: Literal[False] | None = None
    length_penalty: Annotated[float, Meta(ge=1.0, le=1.0)] | None = None
    cache_salt: None = None
    kv_transfer_params: None = None
    logits_processors: None = None
    vllm_xargs: None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats is True
