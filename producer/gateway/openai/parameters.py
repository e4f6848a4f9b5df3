"""From a request's fields to a job's sampling parameters."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from msgspec import UNSET

from penstock.sampling import SamplingParams, StructuredOutputs
from producer.gateway.errors import BadRequest
from producer.gateway.openai.requests import (
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredOutputsFields,
    TextRequest,
)

_SAME: Final = tuple(
    name
    for name in SamplingParams.__struct_fields__
    if name in TextRequest.__struct_fields__ and name not in ("logit_bias", "structured_outputs")
)
"""Fields that mean the same in a request and in a job."""

_GUIDED: Final = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM's older names."""

_TOKEN_ID: Final = re.compile(r"0|[1-9][0-9]{0,9}")
"""What JSON would write a number as: `int` takes blanks, underlines and other scripts' digits, too."""


def sampling_params(request: TextRequest, **more: Any) -> SamplingParams:
    """The parameters of a request; `more` are those that the endpoints name differently, None for not given.

    Raises:
        InvalidJob: they contradict each other.
        BadRequest: as `structured_outputs_of`, or a bias is not for a token id.
    """
    fields = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    fields |= {name: value for name, value in more.items() if value is not None}
    if request.logit_bias:
        fields["logit_bias"] = _biases(request.logit_bias)
    fields.setdefault("structured_outputs", structured_outputs_of(request))
    return SamplingParams(**fields)


def structured_outputs_of(request: TextRequest) -> StructuredOutputs | None:
    """What the output must be, however the request says it.

    Raises:
        BadRequest: it says it in two ways, or in none that is understood.
        InvalidJob: more than one form is asked for.
    """
    named = {name for name in ("structured_outputs", *_GUIDED) if getattr(request, name) is not None}
    constrained = isinstance(request.response_format, JsonObjectFormat | JsonSchemaFormat)
    if len(named) + constrained > 1:
        both = sorted(named) + (["response_format"] if constrained else [])
        raise BadRequest(f"only one of {', '.join(both)} can be given", param=both[0], code="invalid_value")
    if request.structured_outputs is not None:
        return _structured(request.structured_outputs)
    for name in named:
        given = getattr(request, name)
        return StructuredOutputs(**{_GUIDED[name]: _schema(given, name) if name == "guided_json" else given})
    match request.response_format:
        case JsonObjectFormat():
            return StructuredOutputs(json_object=True)
        case JsonSchemaFormat(form):
            if form.schema_ is None:
                param = "response_format.json_schema.schema"
                raise BadRequest(
                    f"Missing required parameter: '{param}'.",
                    param=param,
                    code="missing_required_parameter",
                )
            return StructuredOutputs(json=form.schema_)
        case _:
            return None


def _structured(given: StructuredOutputsFields) -> StructuredOutputs:
    fields = {
        name: value for name, value in msgspec.structs.asdict(given).items() if value not in (None, UNSET)
    }
    if "json" in fields:
        fields["json"] = _schema(fields["json"], "structured_outputs.json")
    if fields.get("json_object") is False:
        del fields["json_object"]
    return StructuredOutputs(**fields)


def _schema(given: Any, param: str) -> Any:
    """A schema that is given as itself, or as the text of its JSON."""
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given, type=dict[str, Any] | bool)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(
            f"'{param}' is not a JSON schema: {error}", param=param, code="invalid_value"
        ) from None


def _biases(given: dict[str, float]) -> dict[int, float]:
    wrong = next((token for token in given if _TOKEN_ID.fullmatch(token) is None), None)
    if wrong is not None:
        raise BadRequest(
            f"'logit_bias' has {json.dumps(wrong[:64])}, which is not a token id",
            param="logit_bias",
            code="invalid_value",
        )
    return {int(token): bias for token, bias in given.items()}
