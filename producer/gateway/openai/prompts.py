"""OpenAI's prompts and inputs: one or many, each a text or token ids."""

from __future__ import annotations

from producer.gateway.errors import BadRequest

Prompt = str | list[int]

MAX_PROMPTS = 2048
"""In one request."""


def prompts_of(given: str | list[str | int | list[int]], param: str) -> list[Prompt]:
    """The single prompts, in order.

    Raises:
        BadRequest: one is empty, kinds are mixed, or there are too many.
    """
    if isinstance(given, str):
        return [_checked(given, param)]
    if all(isinstance(one, int) for one in given):
        return [[one for one in given if isinstance(one, int)]]
    kinds = {type(one) for one in given}
    if len(kinds) > 1 or int in kinds:
        raise BadRequest(
            f"'{param}' is a string, strings, token ids, or lists of token ids; they can't be mixed",
            param=param,
            code="invalid_type",
        )
    if len(given) > MAX_PROMPTS:
        words = f"'{param}' has {len(given)} items; a request has {MAX_PROMPTS} at most"
        raise BadRequest(words, param=param, code="array_above_max_length")
    found = [one for one in given if not isinstance(one, int)]
    return [_checked(one, f"{param}[{number}]") for number, one in enumerate(found)]


def _checked(prompt: Prompt, param: str) -> Prompt:
    if not prompt:
        raise BadRequest(
            f"'{param}' is empty; it needs at least one token", param=param, code="invalid_value"
        )
    return prompt
