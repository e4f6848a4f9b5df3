"""Jobs made of requests, checked as a consumer would, with faults told in the request's own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from penstock.errors import InvalidJob, JobTooLarge
from penstock.messages import Heartbeat, Job, encode_job
from producer.gateway.errors import ApiError, BadRequest, NotFound, TooLarge

_PATH: Final = re.compile(r" - at `\$\.?(?P<path>[^`]*)`")
_QUOTED: Final = re.compile(r"`(?P<name>[a-z_]+)`")


def checked_jobs(make: Callable[[], Sequence[Job]], names: Mapping[str, str]) -> list[Job]:
    """Jobs that a consumer will take.

    Args:
        names: of a job's fields that the request calls otherwise.

    Raises:
        BadRequest: they break the contract; `param` is the request's field.
        TooLarge: one has too many bytes.
    """
    try:
        jobs = list(make())
        for job in jobs:
            encode_job(job)
    except InvalidJob as error:
        raise refusal_of(error, names) from None
    return jobs


def refusal_of(error: InvalidJob, names: Mapping[str, str]) -> ApiError:
    """What the request is told of a job that is none."""
    words = str(error)
    if isinstance(error, JobTooLarge):
        return TooLarge(words, code="job_too_large")
    match = _PATH.search(words)
    path = match["path"].removeprefix("sampling_params.") if match else None
    if not path:
        quoted = _QUOTED.search(words)
        path = quoted["name"] if quoted else None
    if path is None:
        return BadRequest(words, code="invalid_value")
    first, rest = re.fullmatch(r"([^.\[]*)(.*)", path, re.DOTALL).groups()  # type: ignore[union-attr] # always
    param = names.get(first, first) + rest
    return BadRequest(words.replace("`$.", "`"), param=param, code="invalid_value")


def beat_of(model: str, models: Mapping[str, Heartbeat]) -> Heartbeat | None:
    """What is known of the model that a request names; None where no consumer has said anything yet.

    Raises:
        NotFound: others are served, not this one.
    """
    if models and model not in models:
        served = ", ".join(sorted(models))
        raise NotFound(
            f"The model '{model}' does not exist; this queue serves {served}",
            param="model",
            code="model_not_found",
        )
    return models.get(model)
