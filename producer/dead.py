"""The verbs about dead letters: list, show, requeue, drop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import msgspec

from penstock.attempts import Attempt
from penstock.client import Client
from penstock.dead import DeadLetter
from penstock.errors import InvalidJob, NoSuchLetter
from penstock.keys import JobId
from penstock.messages import Error
from producer.errors import UsageError
from producer.where import Where, find_server

_PAGE: Final = 50
_SHORT: Final = 300
"""Characters of a prompt, or of another field, that `show` prints."""


def run_list(where: Where, *, as_json: bool) -> int:
    """Print every dead letter, oldest first."""

    async def each(url: str) -> int:
        count = 0
        async with Client(url) as client, aclosing(_letters(client)) as letters:
            async for letter in letters:
                print(_as_json(letter) if as_json else "\n".join(_in_short(letter)))
                count += 1
        return count

    count = asyncio.run(each(find_server(where)))
    if as_json:
        return 0
    if count == 0:
        print("no dead letters")
        return 0
    what = "1 dead letter" if count == 1 else f"{count} dead letters"
    print(f"\n{what}; penstock dead show{where.flag} ID says all of one, requeue and drop end it")
    return 0


def run_show(where: Where, letter_id: str, *, as_json: bool) -> int:
    """Print one dead letter."""

    async def ask(url: str) -> DeadLetter:
        async with Client(url) as client:
            return await client.dead_letter(letter_id)

    _check_id(letter_id)
    letter = asyncio.run(ask(find_server(where)))
    print(_as_json(letter) if as_json else "\n".join(_in_full(letter)))
    return 0


def run_requeue(where: Where, letter_ids: Sequence[str], *, everything: bool) -> int:
    """Make new jobs of dead letters; 1 where some could not be."""

    async def requeue(client: Client, letter_id: str) -> str:
        return f"requeued as {await client.requeue(letter_id)}"

    return _of_each(where, letter_ids, requeue, everything=everything)


def run_drop(where: Where, letter_ids: Sequence[str], *, everything: bool) -> int:
    """Delete dead letters; 1 where some were not there."""

    async def drop(client: Client, letter_id: str) -> str:
        if not await client.drop(letter_id):
            raise NoSuchLetter(f"there is no dead letter {letter_id}")
        return "dropped"

    return _of_each(where, letter_ids, drop, everything=everything)


def _of_each(
    where: Where,
    letter_ids: Sequence[str],
    work: Callable[[Client, str], Awaitable[str]],
    *,
    everything: bool,
) -> int:
    if bool(letter_ids) == everything:
        raise UsageError("name dead letters by their ids, or give --all")
    for letter_id in letter_ids:
        _check_id(letter_id)

    async def go_through(url: str) -> int:
        problems = 0
        async with Client(url) as client:
            # Those that are there now: a job may die again before the last one is requeued.
            ids = [letter.letter_id async for letter in _letters(client)] if everything else letter_ids
            for letter_id in ids:
                try:
                    print(f"{letter_id} {await work(client, letter_id)}", flush=True)
                except (NoSuchLetter, InvalidJob) as error:
                    problems += 1
                    print(f"penstock: {error}", file=sys.stderr)
            if everything and not ids:
                print("no dead letters")
        return int(problems > 0)

    return asyncio.run(go_through(find_server(where)))


async def _letters(client: Client) -> AsyncGenerator[DeadLetter, None]:
    after = "0-0"
    while letters := await client.dead_letters(after, _PAGE):
        for letter in letters:
            yield letter
        after = letters[-1].letter_id


def _check_id(letter_id: str) -> None:
    ms, dash, sequence = letter_id.partition("-")
    if not (dash and ms.isascii() and ms.isdigit() and sequence.isascii() and sequence.isdigit()):
        raise UsageError(f"{letter_id!r} is not a dead letter's id; `penstock dead ls` lists them")


def _in_short(letter: DeadLetter) -> list[str]:
    lane = JobId.parse(letter.job_id).lane
    return [
        f"{letter.letter_id}  {_time(_died_at_ms(letter))}  {lane}  {error_in_words(letter.event.error)}",
        f"  job {letter.job_id}",
        *(f"  {line}" for line in attempts_in_words(letter.attempts)),
    ]


def _in_full(letter: DeadLetter) -> list[str]:
    fields = _fields(letter)
    prompt = (
        fields.pop("prompt", None) or fields.pop("messages", None) or fields.pop("prompt_token_ids", None)
    )
    lines = [
        f"dead letter  {letter.letter_id}",
        f"job          {letter.job_id}",
        f"lane         {JobId.parse(letter.job_id).lane}",
        f"died         {_time(_died_at_ms(letter))}",
        f"error        {error_in_words(letter.event.error)}",
        f"prompt       {_shortened(prompt)}",
    ]
    lines += [f"{name:<12} {_shortened(value)}" for name, value in fields.items()]
    return [*lines, *attempts_in_words(letter.attempts)]


def attempts_in_words(attempts: Sequence[Attempt]) -> list[str]:
    """A line for each failed attempt."""
    return [
        f"attempt {number}  {_time(attempt.at_ms)}  on {attempt.consumer}  {error_in_words(attempt.error)}"
        for number, attempt in enumerate(attempts, 1)
    ]


def error_in_words(error: Error) -> str:
    """Type and message, on one line."""
    return f"{error.type}: {' '.join(error.message.split())}"


def _died_at_ms(letter: DeadLetter) -> int:
    return int(letter.letter_id.partition("-")[0])


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().isoformat(" ", "seconds")


def _fields(letter: DeadLetter) -> dict[str, Any]:
    """The job's fields as its sender gave them."""
    try:
        return msgspec.json.decode(letter.job, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {"prompt": letter.job.decode(errors="replace")}


def _shortened(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}… ({len(text):,} characters)"


def _as_json(letter: DeadLetter) -> str:
    described = {
        "letter_id": letter.letter_id,
        "died_at_ms": _died_at_ms(letter),
        "job_id": letter.job_id,
        "lane": JobId.parse(letter.job_id).lane,
        "error": letter.event.error,
        "attempts": letter.attempts,
        "job": _fields(letter),
    }
    return msgspec.json.encode(described).decode()
