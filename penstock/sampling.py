"""How a job's tokens are chosen, when its output ends, and what form that has.

Field names follow vLLM and OpenAI. `penstock.messages` has the rest of a job.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from penstock.errors import InvalidJob

MAX_STOP_STRINGS: Final = 64
MAX_STOP_TOKEN_IDS: Final = 256
MAX_LOGPROBS: Final = 20
MAX_SAMPLES: Final = 128

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]


class StructuredOutputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the output must be. Exactly one of these is given; field names are vLLM's."""

    json: dict[str, Any] | bool | None = None
    """A JSON schema. Finished output is parsed and validated against it, too."""
    json_object: Literal[True] | None = None
    """Any JSON object."""
    regex: Annotated[str, Meta(min_length=1)] | None = None
    """A regular expression that the whole output matches."""
    choice: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)] | None = None
    """The output is one of these."""
    grammar: Annotated[str, Meta(min_length=1)] | None = None
    """A Lark grammar, as llguidance reads it."""

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(given) != 1:
            found = "none is given" if not given else f"{' and '.join(f'`{n}`' for n in given)} are given"
            names = ", ".join(f"`{name}`" for name in self.__struct_fields__)
            raise InvalidJob(f"`structured_outputs` has exactly one of {names}; {found}")


class RepetitionDetection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Ends an output that repeats itself, with finish reason `repetition`. Field names are vLLM's."""

    max_pattern_size: Annotated[int, Meta(ge=1, le=1024)]
    """Longest repeated stretch to look for, in tokens."""
    min_pattern_size: Annotated[int, Meta(ge=1, le=1024)] = 1
    min_count: Annotated[int, Meta(ge=2, le=1024)] = 2
    """How many times in a row a stretch must be there."""

    def __post_init__(self) -> None:
        if self.min_pattern_size > self.max_pattern_size:
            raise InvalidJob(
                f"`min_pattern_size` is {self.min_pattern_size}; it must be at most `max_pattern_size` "
                f"({self.max_pattern_size})"
            )


_FLOATS: Final = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


class SamplingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How tokens are chosen and when generation ends.

    `None` means the model's own default (its generation_config.json), else the neutral value that the
    field's description names. A model whose generation config says `do_sample: false` is greedy.
    """

    n: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] = 1
    """Outputs to generate from the prompt, which is computed once."""
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Tokens to generate; by default as many as the model's window holds."""
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    """No end token, stop token or stop string ends the output before it has this many tokens."""
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    """0 is greedy; the neutral value is 1."""
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    """Keep the most likely tokens up to this mass; the neutral value is 1."""
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """Keep the k most likely tokens; 0 or -1 keeps all."""
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    """Drop tokens under min_p times the likeliest; the neutral value is 0."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    """By default derived from the job id."""
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logit of every token that the output has."""
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    """Subtracted as many times as the output has the token."""
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] | None = None
    """Divides the positive logits of tokens that prompt or output have, multiplies the negative ones; the
    neutral value is 1."""
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] = {}
    """Added to the logits of these tokens; a token id is written as a string, as JSON's keys are."""
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    """Nothing else is sampled."""
    bad_words: Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] = []
    """Words whose tokens the output never contains in a row."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """Give the log-probability of every output token, and those of this many most likely tokens."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """The same for the prompt's tokens, from the second on."""
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] = []
    """The text ends before the first of these that appears."""
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] = []
    """Generation ends at any of these tokens."""
    include_stop_str_in_output: bool = False
    """Leave the stop string, or the stop token's text, in the text."""
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    structured_outputs: StructuredOutputs | None = None
    repetition_detection: RepetitionDetection | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidJob(
                f"`min_tokens` is {self.min_tokens}; it must be at most `max_tokens` ({self.max_tokens})"
            )
        # JSON has no NaN and msgspec would write one as null, which reads as "not given".
        # Looked at together first: this runs twice for every job.
        if not math.isfinite(
            (self.temperature or 0.0)
            + (self.top_p or 0.0)
            + (self.min_p or 0.0)
            + self.presence_penalty
            + self.frequency_penalty
            + (self.repetition_penalty or 0.0)
        ):
            self._check_finite()

    def _check_finite(self) -> None:
        for name in _FLOATS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InvalidJob(f"`{name}` is {value}; it must be a finite number")

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list, whichever way it was given."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class PoolingParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an `embed` job's vector is made of the prompt's last hidden states."""

    pooling: Literal["last", "mean"] = "last"
    """That of the last token, or the mean of all."""
    normalize: bool = True
    """Scale the vector to length 1."""
