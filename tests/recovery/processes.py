"""Consumer processes to kill, and what must hold of a result stream afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import redis

from penstock.keys import Keys
from penstock.messages import Done, Event, Failed, Tokens, decode_event


class ConsumerProcess:
    """A consumer in a process of its own, in a process group of its own."""

    def __init__(self, *argv: str) -> None:
        self.process = subprocess.Popen([sys.executable, *argv], start_new_session=True)

    @classmethod
    def scripted(cls, url: str, model: Path, *flags: str, **settings: Any) -> ConsumerProcess:
        """With the scripted engine."""
        return cls("-m", "tests.recovery.scripted_consumer", url, str(model), json.dumps(settings), *flags)

    @property
    def engine(self) -> psutil.Process:
        """Its engine, once it is started."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def kill(self) -> None:
        """SIGKILL to the consumer alone: its engine has to notice by itself."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP to the consumer and its engine: to everybody else as if the machine were gone."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def pause_alone(self) -> None:
        """SIGSTOP to the consumer alone: its engine goes on, and nobody listens."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to both: they find out what they missed."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def drain(self, timeout_s: float = 20) -> int:
        """SIGTERM; gives the exit status."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def group_is_empty(self) -> bool:
        """Whether nothing of its process group is left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def clean_up(self) -> None:
        """Whatever the test did: leave no process behind."""
        if not self.group_is_empty():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def events_of(server: redis.Redis, job_id: str) -> list[tuple[str, Event]]:
    """A job's result stream."""
    entries = server.xrange(Keys().result(job_id))
    return [(entry_id.decode(), decode_event(fields[b"event"])) for entry_id, fields in entries]


def check_stream(events: list[tuple[str, Event]]) -> Done:
    """One terminal event at the end; before it, tokens of each sample without a gap, a repeat or a change."""
    assert events, "no event at all"
    *tokens, (last_id, done) = events
    assert isinstance(done, Done), done
    count, texts = 0, dict[int, str]()
    for event_id, event in tokens:
        assert isinstance(event, Tokens), f"{event_id}: {event}, and more behind it"
        count += len(event.token_ids)
        text = texts.get(event.sample, "")
        assert event_id == f"{count}-0"
        assert event.text_offset == len(text)
        texts[event.sample] = text + event.text
    assert last_id == f"{done.usage.completion_tokens}-1"
    if tokens:
        assert texts == {output.index: output.text for output in done.outputs}
    return done


def terminal_events(events: list[tuple[str, Event]]) -> int:
    """How many of them are ends."""
    return sum(isinstance(event, Done | Failed) for _, event in events)
