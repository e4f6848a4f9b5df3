"""A consumer without an engine, in the place of the real one: it answers with the prompt in upper case.

A `score` job's score is -1.25, an `embed` job's vector [0.5, -0.25]; its model states a temperature of 0.5.
It speaks the wire by penstock's own scripts. A prompt that starts with `fail` fails. Each answer is noted in
the file $STAND_IN_LOG, so that tests can count how often a row was run; $STAND_IN_DELAY_S slows it down,
and $STAND_IN_STUBBORN makes it deaf to SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
from typing import Any

import redis

from penstock import keys as names
from penstock.keys import JobId, Keys
from penstock.messages import (
    Completion,
    Done,
    Error,
    Failed,
    Heartbeat,
    Job,
    Score,
    Tokens,
    Usage,
    decode_job,
    encode_event,
    encode_heartbeat,
)
from penstock.scripts import CLAIM, COMMIT

LEASE_MS = 2000


class StandIn:
    def __init__(self, url: str, model: str, name: str) -> None:
        self.redis = redis.Redis.from_url(url, protocol=2)
        self.keys, self.model = Keys(), model
        self.name = f"{name}.{secrets.token_hex(4)}"
        self.log = os.environ.get("STAND_IN_LOG")
        self.delay_s = float(os.environ.get("STAND_IN_DELAY_S", "0"))

    def beat(self) -> None:
        seconds, micros = self.redis.time()
        beat = Heartbeat(
            model=self.model,
            phase="ready",
            at_ms=seconds * 1000 + micros // 1000,
            interval_ms=1000,
            defaults={"temperature": 0.5},
        )
        self.redis.hset(self.keys.consumers, self.name, encode_heartbeat(beat))

    def step(self) -> bool:
        lanes = sorted(lane.decode() for lane in self.redis.hkeys(self.keys.lanes)) or ["standard"]
        keys = [self.keys.lanes, self.keys.deficits, self.keys.attempts, *map(self.keys.jobs, lanes)]
        arguments = [names.GROUP, self.name, LEASE_MS, 16]
        for lane in lanes:
            arguments += [lane, "0-0"]
        taken, _, _ = self.redis.eval(CLAIM.source, len(keys), *keys, *arguments)
        for lane, entry, deliveries, _, _, flat in taken:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            nonce = fields.get(b"nonce", b"").decode() or None
            self.answer(JobId(lanes[lane], entry.decode(), nonce), deliveries, decode_job(fields[b"job"]))
        return bool(taken)

    def answer(self, job_id: JobId, deliveries: int, job: Job) -> None:
        time.sleep(self.delay_s)
        prompt = job.prompt or str(job.messages[-1].content if job.messages else "")
        end = self.end(prompt, job)
        lane = self.keys.jobs(job_id.lane)
        keys = [lane, self.keys.deficits, self.keys.attempts]
        as_row: list[Any] = []
        if job.batch is not None:
            keys += [self.keys.batch(job.batch), self.keys.batch_done(job.batch)]
            counter = names.COMPLETED if isinstance(end, Done) else names.FAILED
            as_row = [counter, "" if job.row is None else job.row]
        tokens: tuple[Any, Any] = ("", "")
        if job.stream:
            tokens = "1-0", encode_event(Tokens(text=prompt.upper()[:3], token_ids=[1], text_offset=0))
        keys.append(self.keys.result(str(job_id)))
        arguments = [names.GROUP, self.name, job_id.lane, int(bool(as_row))]
        arguments += [job_id.entry, deliveries, 1, 1, 60_000, 0, *tokens, "1-1", encode_event(end), *as_row]
        (committed,) = self.redis.eval(COMMIT.source, len(keys), *keys, *arguments)
        if self.log and committed:
            with open(self.log, "a") as log:
                log.write(f"{prompt}\n")

    def end(self, prompt: str, job: Job) -> Done | Failed:
        if prompt.startswith("fail"):
            return Failed(error=Error(type="engine_error", message="as asked"), custom_id=job.custom_id)
        samples = range(job.sampling_params.n if job.kind == "generate" else 0)
        return Done(
            outputs=[Completion(text=prompt.upper(), finish_reason="stop", index=index) for index in samples],
            usage=Usage(prompt_tokens=1, completion_tokens=2),
            model=self.model,
            score=Score(logprob=-1.25, tokens=[]) if job.kind == "score" else None,
            embedding=[0.5, -0.25] if job.kind == "embed" else None,
            custom_id=job.custom_id,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", default="stand-in")
    for not_its_own in ("--metrics-port", "--metrics-host"):
        parser.add_argument(not_its_own)
    args = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN if "STAND_IN_STUBBORN" in os.environ else lambda *_: sys.exit(0)
    )
    consumer, beaten = StandIn(args.redis, args.model, args.name), 0.0
    while True:
        try:
            if time.monotonic() - beaten > 0.3:
                consumer.beat()
                beaten = time.monotonic()
            if not consumer.step():
                time.sleep(0.01)
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.05)


if __name__ == "__main__":
    main()
