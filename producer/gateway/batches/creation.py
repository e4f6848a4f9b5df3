"""A new batch: what may be asked for, and the batch that comes of it."""

from __future__ import annotations

import re
from typing import Any, Final

from msgspec import Struct

from producer.gateway.batches.objects import BatchObject, BatchRecord, new_batch_id, now
from producer.gateway.caller import Caller
from producer.gateway.errors import BadRequest
from producer.gateway.files.objects import new_file_id
from producer.gateway.files.upload import checked_seconds
from producer.gateway.openai.endpoints import ENDPOINTS

UNITS: Final = {"m": 60, "h": 3600, "d": 86400}
LONGEST_WINDOW_S: Final = 30 * 86400
MAX_PAIRS: Final = 16
MAX_KEY: Final = 64
MAX_VALUE: Final = 512

_WINDOW: Final = re.compile(r"(?P<count>[1-9][0-9]{0,5})(?P<unit>[mhd])")


class ExpiresAfter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When output files are to be gone."""

    anchor: str
    seconds: int


class BatchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: dict[str, Any] | None = None
    output_expires_after: ExpiresAfter | None = None
    strict: bool | None = None
    """Fail the whole batch for a bad line; by default as the gateway is set."""


def made_batch(
    asked: BatchRequest, caller: Caller, *, is_strict: bool, retry_of: str | None = None
) -> BatchRecord:
    """The batch that is asked for, not stored yet.

    Raises:
        BadRequest: it can't be.
    """
    if asked.endpoint not in ENDPOINTS:
        raise BadRequest(
            f"Invalid value: '{asked.endpoint[:100]}'. Supported values are: "
            + ", ".join(f"'{one}'" for one in ENDPOINTS),
            param="endpoint",
            code="invalid_value",
        )
    window_s = _seconds(asked.completion_window)
    expires_after_s = None
    if (after := asked.output_expires_after) is not None:
        if after.anchor != "created_at":
            raise BadRequest(
                "output_expires_after.anchor must be 'created_at'",
                param="output_expires_after.anchor",
                code="invalid_value",
            )
        expires_after_s = checked_seconds(after.seconds, "output_expires_after.seconds")
    made = now()
    batch = BatchObject(
        id=new_batch_id(),
        endpoint=asked.endpoint,
        input_file_id=asked.input_file_id[:128],
        completion_window=asked.completion_window,
        created_at=made,
        expires_at=made + window_s,
        metadata=_checked_metadata(asked.metadata),
        retry_of=retry_of,
    )
    return BatchRecord(
        batch=batch,
        lane=caller.lane,
        max_tokens=caller.limits.queued_tokens,
        key_id=caller.key_id,
        is_strict=is_strict if asked.strict is None else asked.strict,
        output_expires_after_s=expires_after_s,
        file_ids=(new_file_id(), new_file_id()),
    )


def _seconds(window: str) -> int:
    match = _WINDOW.fullmatch(window)
    seconds = int(match["count"]) * UNITS[match["unit"]] if match else 0
    if not 0 < seconds <= LONGEST_WINDOW_S:
        raise BadRequest(
            f"Invalid value: '{window[:64]}'. A completion window is a number of minutes, hours or days, "
            "30 days at most: '90m', '24h', '7d'.",
            param="completion_window",
            code="invalid_value",
        )
    return seconds


def _checked_metadata(metadata: dict[str, Any] | None) -> dict[str, str] | None:
    if metadata is None:
        return None
    if len(metadata) > MAX_PAIRS:
        raise BadRequest(
            f"metadata has {len(metadata)} pairs; it may have {MAX_PAIRS}",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in metadata.items():
        param = f"metadata.{key[:MAX_KEY]}"
        if len(key) > MAX_KEY:
            raise BadRequest(
                f"a key of metadata may have {MAX_KEY} characters",
                param=param,
                code="string_above_max_length",
            )
        if not isinstance(value, str):
            raise BadRequest(
                f"Invalid type for '{param}': expected a string.", param=param, code="invalid_type"
            )
        if len(value) > MAX_VALUE:
            raise BadRequest(
                f"a value of metadata may have {MAX_VALUE} characters",
                param=param,
                code="string_above_max_length",
            )
    return metadata
