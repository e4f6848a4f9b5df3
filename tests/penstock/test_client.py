"""The client against a real server; the test plays the consumer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from penstock import (
    Client,
    Done,
    Ended,
    Failed,
    InvalidJob,
    InvalidJobId,
    Job,
    JobFailed,
    JobLost,
    Leased,
    NoSuchLetter,
    Queued,
    Released,
    ResultTimeout,
    Tokens,
    Unknown,
)
from penstock.errors import BatchUnknown
from penstock.keys import JobId
from penstock.messages import Error, decode_event, decode_job
from penstock.presence import NOBODY
from tests.penstock.support import KEYS, Worker, done, tokens


async def test_a_prompt_becomes_an_entry_with_job_and_nonce(client: Client, redis: Redis) -> None:
    job_id = await client.submit("What is 2 + 2?")

    [(entry, fields)] = await redis.xrange(KEYS.jobs("standard"))
    parsed = JobId.parse(job_id)
    assert (parsed.lane, parsed.entry, parsed.nonce) == (
        "standard",
        entry.decode(),
        fields[b"nonce"].decode(),
    )
    assert list(fields) == [b"job", b"nonce"]
    assert decode_job(fields[b"job"]) == Job(prompt="What is 2 + 2?")


async def test_result_is_the_done_event(client: Client, worker: Worker) -> None:
    job_id = await client.submit(Job(prompt="2 + 2", custom_id="mine"))
    waiting = asyncio.create_task(client.result(job_id, timeout=10))
    assert await worker.claim() == [job_id]
    assert await worker.commit(job_id, done("4", "mine"))

    assert await waiting == done("4", "mine")
    assert await client.result(job_id, timeout=10) == done("4", "mine")  # and again, from what is kept


async def test_result_of_a_failed_job_raises(client: Client, worker: Worker) -> None:
    job_id = await client.submit("x")
    await worker.claim()
    error = Error(type="engine_error", message="out of luck", retryable=True)
    await worker.commit(job_id, Failed(error=error), count=0)

    with pytest.raises(JobFailed, match="engine_error: out of luck") as caught:
        await client.result(job_id, timeout=10)
    assert caught.value.error == error


async def test_result_times_out_and_the_job_goes_on(client: Client, worker: Worker) -> None:
    job_id = await client.submit("x")
    with pytest.raises(ResultTimeout, match=r"has not ended within 0\.05 s"):
        await client.result(job_id, timeout=0.05)
    await worker.claim()
    assert await worker.commit(job_id, done())
    assert (await client.result(job_id, timeout=10)).text == "4"


async def test_an_outer_timeout_is_not_taken_for_ours(client: Client) -> None:
    job_id = await client.submit("x")
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await client.result(job_id, timeout=60)
    assert not isinstance(caught.value, ResultTimeout)


async def test_two_jobs_of_the_same_custom_id_are_two_jobs(client: Client, worker: Worker) -> None:
    first, second = await client.submit_many([Job(prompt="a", custom_id="x"), Job(prompt="b", custom_id="x")])
    assert first != second
    await worker.serve(2)
    assert (await client.result(first, 10)).text == first
    assert (await client.result(second, 10)).text == second


async def test_stream_gives_events_as_they_come_and_ends(client: Client, worker: Worker) -> None:
    job_id = await client.submit(Job(prompt="x", stream=True))
    await worker.claim()
    stream = client.stream(job_id)
    await worker.publish(job_id, "2-0", tokens("ab", 0))
    assert await anext(stream) == ("2-0", tokens("ab", 0))
    await worker.publish(job_id, "5-0", tokens("cde", 2))
    assert await anext(stream) == ("5-0", tokens("cde", 2))
    await worker.commit(job_id, done("abcde"), count=5)
    assert [item async for item in stream] == [("5-1", done("abcde"))]


async def test_stream_goes_on_after_any_event_id(client: Client, worker: Worker) -> None:
    job_id = await client.submit(Job(prompt="x", stream=True))
    await worker.claim()
    for end in range(1, 30):
        await worker.publish(job_id, f"{end}-0", tokens("a", end - 1))
    await worker.commit(job_id, done("a" * 29), count=29)

    events = [item async for item in client.stream(job_id)]
    assert len(events) == 30
    for place, (event_id, _) in enumerate(events):
        assert [item async for item in client.stream(job_id, after=event_id)] == events[place + 1 :]


async def test_followers_of_one_job_at_different_places(client: Client, worker: Worker) -> None:
    job_id = await client.submit(Job(prompt="x", stream=True))
    await worker.claim()
    await worker.publish(job_id, "1-0", tokens("a", 0))
    await worker.publish(job_id, "2-0", tokens("b", 1))

    async def read(after: str) -> list[str]:
        return [event_id async for event_id, _ in client.stream(job_id, after)]

    readers = [asyncio.create_task(read(after)) for after in ("0-0", "1-0", "2-0", "0-0")]
    await asyncio.sleep(0.05)
    await worker.commit(job_id, done("ab"), count=2)
    assert await asyncio.gather(*readers) == [
        ["1-0", "2-0", "2-1"],
        ["2-0", "2-1"],
        ["2-1"],
        ["1-0", "2-0", "2-1"],
    ]


async def test_a_cancellation_asked_for_while_the_task_computes_is_not_swallowed(client: Client) -> None:
    await client.submit("warm: the next call finds a connection in the pool")

    async def interrupted() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # as a signal's handler does, between two awaits
        await client.submit("never")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(interrupted())


async def test_a_cancelled_waiter_takes_nothing_with_it(client: Client, worker: Worker) -> None:
    job_id = await client.submit("x")
    waiters = [asyncio.create_task(client.result(job_id)) for _ in range(10)]
    await asyncio.sleep(0.05)
    for waiter in waiters[:5]:
        waiter.cancel()
    await worker.serve(1)
    assert {(await waiter).text for waiter in waiters[5:]} == {job_id}


async def test_status_along_a_life(client: Client, worker: Worker) -> None:
    await worker.beat()
    job_id = await client.submit("x")
    assert await client.status(job_id) == Queued(ahead=0)
    await worker.claim()
    match await client.status(job_id):
        case Leased(consumer="worker.1", deliveries=1, idle_ms=idle_ms):
            assert 0 <= idle_ms < 10_000
        case other:
            pytest.fail(f"{other}")
    await worker.release(job_id)
    match await client.status(job_id):
        case Released(deliveries=1):
            pass
        case other:
            pytest.fail(f"{other}")
    await worker.claim()
    await worker.commit(job_id, done())
    assert await client.status(job_id) == Ended(event_id="1-1", event=done())


async def test_status_estimates_the_place_in_the_queue(client: Client, worker: Worker) -> None:
    await worker.beat()
    ids: list[str] = []
    for _ in range(20):
        ids += await client.submit_many(["x"] * 50)
        await asyncio.sleep(0.005)
    await worker.claim(100)
    for index in (100, 300, 550, 999):
        status = await client.status(ids[index])
        assert isinstance(status, Queued)
        assert abs(status.ahead - (index - 100)) < 150, (index, status)
    assert await client.status(ids[100]) == Queued(ahead=0)
    assert await client.status(ids[999]) == Queued(ahead=899)


async def test_status_says_what_a_job_waits_for(client: Client, worker: Worker) -> None:
    job_id = await client.submit("x")
    assert await client.status(job_id) == Queued(ahead=0, waits_for="consumer", detail=NOBODY)
    await worker.beat("loading weights")
    loading = "the consumer is not ready yet: loading weights"
    assert await client.status(job_id) == Queued(ahead=0, waits_for="model", detail=loading)
    await worker.beat()
    assert await client.status(job_id) == Queued(ahead=0, waits_for="turn")
    await client.pause("standard")
    paused = Queued(ahead=0, waits_for="resume", detail="its lane is paused")
    assert await client.status(job_id) == paused
    await client.pause()
    queue = Queued(ahead=0, waits_for="resume", detail="the queue is paused")
    assert await client.status(job_id) == queue
    await client.resume()
    assert await client.status(job_id) == paused
    assert await worker.claim() == []
    await client.resume("standard")
    assert await worker.claim() == [job_id]


async def test_status_tells_of_failed_attempts(client: Client, worker: Worker) -> None:
    await worker.beat()
    job_id = await client.submit(Job(prompt="x", max_attempts=2))
    await worker.claim()
    assert await worker.fail(job_id, "no memory", delay_ms=20_000, max_attempts=2) == b"retry"
    status = await client.status(job_id)
    assert isinstance(status, Released)
    (attempt,) = status.attempts
    assert (attempt.consumer, attempt.error.message) == ("worker.1", "no memory")
    assert status.retry_at_ms == attempt.retry_at_ms == attempt.at_ms + 20_000


async def test_dead_letters_are_listed_requeued_and_dropped(client: Client, worker: Worker) -> None:
    ids = await client.submit_many(["a", "b", "c"], "alice")
    assert await worker.claim(3, "alice") == ids
    for job_id in ids:
        assert await worker.fail(job_id, f"out of luck with {job_id}", max_attempts=1) == b"dead"
    letters = await client.dead_letters()
    assert [letter.job_id for letter in letters] == ids
    assert [letter.attempts[0].error.message for letter in letters] == [f"out of luck with {i}" for i in ids]
    first, second, third = (letter.letter_id for letter in letters)
    assert await client.dead_letters(after=first, count=1) == [letters[1]]
    assert await client.dead_letter(second) == letters[1]

    again = await client.requeue(first)
    assert await worker.claim(3, "alice") == [again]
    assert JobId.parse(again).lane == "alice"
    assert (await client.drop(second), await client.drop(second)) == (True, False)
    assert [letter.letter_id for letter in await client.dead_letters()] == [third]
    for gone in (first, second):
        with pytest.raises(NoSuchLetter, match=f"there is no dead letter {gone}"):
            await client.requeue(gone)
    with pytest.raises(ValueError, match="'nonsense' is not"):
        await client.dead_letter("nonsense")


async def test_status_of_ids_that_never_were(client: Client, redis: Redis) -> None:
    assert await client.status("standard.1-0") == Unknown()  # there is not even a lane
    job_id = await client.submit("x")
    assert await client.status(job_id[:-1] + ("0" if job_id[-1] != "0" else "1")) == Unknown()
    assert await client.status(job_id.rsplit(".", 1)[0]) == Unknown()  # a raw id for an entry with a nonce
    assert await client.status("standard.18446744073709551615-18446744073709551615") == Unknown()
    with pytest.raises(InvalidJobId, match="is not a job id"):
        await client.status("standard")


async def test_a_raw_entry_is_a_job(client: Client, redis: Redis, worker: Worker) -> None:
    entry = await redis.execute_command("XADD", KEYS.jobs("standard"), "*", "job", '{"prompt":"Hello"}')
    job_id = f"standard.{entry.decode()}"
    assert await client.status(job_id) == Queued(ahead=0, waits_for="consumer", detail=NOBODY)
    assert await worker.claim() == [job_id]
    await worker.commit(job_id, done("Hi"))
    assert (await client.result(job_id, timeout=10)).text == "Hi"


@pytest.mark.parametrize("leased", [False, True])
async def test_cancel_is_final_at_once(client: Client, redis: Redis, worker: Worker, leased: bool) -> None:
    job_id = await client.submit(Job(prompt="x", custom_id="mine", result_ttl_s=100))
    if leased:
        await worker.claim()
        await worker.publish(job_id, "3-0", tokens("abc", 0))
    waiting = asyncio.create_task(client.result(job_id, timeout=10))

    assert await client.cancel(job_id)

    with pytest.raises(JobFailed, match="cancelled: the job was cancelled"):
        await waiting
    ending = Failed(error=Error(type="cancelled", message="the job was cancelled"), custom_id="mine")
    assert await client.status(job_id) == Ended(event_id="3-1" if leased else "0-1", event=ending)
    assert 90 < await redis.ttl(KEYS.result(job_id)) <= 100
    assert await redis.xlen(KEYS.jobs("standard")) == 0
    assert (await redis.xrevrange(KEYS.control, count=1))[0][1] == {b"cancel": job_id.encode()}
    if leased:  # the owner learns it by its token
        assert (await redis.xpending(KEYS.jobs("standard"), "penstock"))["pending"] == 0
        assert not await worker.publish(job_id, "4-0", tokens("d", 3))
        assert not await worker.commit(job_id, done(), count=4)
    assert not await client.cancel(job_id)


async def test_cancel_of_what_is_not_there(client: Client, worker: Worker) -> None:
    assert not await client.cancel("standard.1-0")
    job_id = await client.submit("x")
    assert not await client.cancel(job_id[:-1] + ("0" if job_id[-1] != "0" else "1"))
    assert not await client.cancel(job_id.rsplit(".", 1)[0])
    await worker.serve(1)
    assert not await client.cancel(job_id)
    assert (await client.result(job_id, 10)).text == job_id


async def test_cancel_of_a_raw_job_that_is_not_json(client: Client, redis: Redis) -> None:
    entry = await redis.execute_command("XADD", KEYS.jobs("standard"), "*", "job", b"\xff{nonsense")
    assert await client.cancel(f"standard.{entry.decode()}")


async def test_bad_jobs_are_refused_before_anything_is_sent(client: Client, redis: Redis) -> None:
    for job in ("", Job(prompt="\ud800"), Job(prompt="x", chat_template_kwargs={"x": object()})):
        with pytest.raises(InvalidJob):
            await client.submit(job)
    with pytest.raises(ValueError, match="is not a lane name"):
        await client.submit("x", lane="Jobs!")
    with pytest.raises(BatchUnknown):
        await client.submit(Job(prompt="x", batch="nowhere"))
    assert await redis.keys("*") == []


async def test_a_lost_job_is_said_to_be_lost(client: Client, redis: Redis, worker: Worker) -> None:
    deleted, stranded, expired = await client.submit_many(["a", "b", "c"])
    await worker.claim(3)
    await worker.publish(deleted, "1-0", tokens("a", 0))
    for job_id in (deleted, expired):
        await redis.xdel(KEYS.jobs("standard"), JobId.parse(job_id).entry)
    await redis.xack(KEYS.jobs("standard"), "penstock", JobId.parse(stranded).entry)

    started = time.monotonic()
    outcomes = await asyncio.gather(
        *(client.result(job_id, 20) for job_id in (deleted, stranded, expired, "standard.1-0")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [JobLost] * 4
    assert "parts of it" in str(outcomes[0])
    assert "its result expired or was deleted" in str(outcomes[2])
    assert time.monotonic() - started < 10


async def test_a_client_made_of_a_redis_client_has_its_own_connections(
    redis_url: str, worker: Worker
) -> None:
    async with Redis.from_url(
        redis_url, decode_responses=True, socket_timeout=0.2, max_connections=1
    ) as theirs:
        async with Client(theirs) as client:
            job_id = await client.submit("x")
            waiting = asyncio.create_task(client.result(job_id))
            await asyncio.sleep(0.5)  # longer than their socket_timeout
            await worker.serve(1)
            assert (await waiting).text == job_id
        assert await theirs.ping()


async def test_closing_wakes_those_who_wait(redis_url: str) -> None:
    client = Client(redis_url)
    job_id = await client.submit("x")
    waiting = asyncio.create_task(client.result(job_id))
    await asyncio.sleep(0.05)
    await client.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    with pytest.raises(RuntimeError, match="closed"):
        await client.result(job_id)


async def test_events_ignore_fields_of_newer_consumers() -> None:
    event = decode_event(b'{"type":"tokens","text":"a","token_ids":[1],"text_offset":0,"colour":"red"}')
    assert event == Tokens(text="a", token_ids=[1], text_offset=0)
    newer = b'{"type":"done","outputs":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"x":1},'
    newer += b'"model":"m","y":[]}'
    assert isinstance(decode_event(newer), Done)


async def test_a_dead_letter_that_cannot_be_read_hides_no_other(
    client: Client, redis: Redis, worker: Worker
) -> None:
    await redis.xadd(KEYS.dead, {"job_id": "standard.1-0", "event": "{", "attempts": "?\n"})
    (letter,) = await client.dead_letters()
    assert (letter.job_id, letter.event.error.type, letter.attempts) == ("standard.1-0", "unreadable", [])
    with pytest.raises(InvalidJob, match=f"dead letter {letter.letter_id}"):
        await client.requeue(letter.letter_id)
    assert await client.drop(letter.letter_id)


async def test_what_is_no_event_id_is_not_taken_for_the_end(client: Client) -> None:
    job_id = await client.submit("x")
    with pytest.raises(ValueError, match="is not a stream entry's id"):
        await anext(client.stream(job_id, after="junk-1"))


async def test_a_raw_entry_in_a_lane_that_nobody_declared_says_so(client: Client, redis: Redis) -> None:
    entry = (await redis.xadd(KEYS.jobs("tenant"), {"job": '{"prompt":"x"}'})).decode()
    status = await client.status(f"tenant.{entry}")
    assert isinstance(status, Queued)
    assert status.waits_for == "lane"
    assert "penstock lanes set" in status.detail
    await client.set_lane("tenant", weight=1)
    assert (await client.status(f"tenant.{entry}")).waits_for == "consumer"  # type: ignore[union-attr] - Queued


async def test_settings_that_somebody_spoiled_by_hand_keep_nobody_out(client: Client, redis: Redis) -> None:
    for spoiled in ("{", "[]", '{"max_jobs":"abc"}'):
        await redis.hset(KEYS.lanes, mapping={"spoiled": spoiled, "*": spoiled})
        assert await client.submit("x", lane="spoiled")


def test_a_deadline_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidJob, match="deadline_s"):
        Job(prompt="x", deadline_s=float("nan"))


async def test_a_hook_puts_another_job_in_the_place_of_each(redis_url: str, redis: Redis) -> None:
    left: list[str | None] = []

    @contextmanager
    def hook(job: Job) -> Iterator[Job]:
        yield replace(job, custom_id=f"of {job.prompt}")
        left.append(job.prompt)

    async with Client(redis_url, hook=hook) as client:
        await client.submit("a")
        await client.submit(Job(prompt="b"), idempotency_key="k")
        await client.submit_many(["c", Job(prompt="d")])
        with pytest.raises(InvalidJob):
            await client.submit(Job(prompt="e" * 5_000_000))
    jobs = [decode_job(fields[b"job"]) for _, fields in await redis.xrange(KEYS.jobs("standard"))]
    assert [(job.prompt, job.custom_id) for job in jobs] == [(name, f"of {name}") for name in "abcd"]
    assert left == [*"abcd"]  # the fifth's error was raised into it
