"""The tiny trained model's engine and the consumer's path from a lease to an ending, in this process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consumer.admission import Admission
from consumer.defaults import Defaults
from consumer.lease import Ending, Lease
from consumer.running import EngineRefused, RunningJob
from consumer.served import Served
from consumer.token_logprobs import TokenTexts
from consumer.tokenizer import PromptTokenizer
from engine.engine import Engine
from engine.messages import Ready
from engine.request import Output
from penstock.keys import JobId
from penstock.messages import Completion, Done, Error, Failed, Job, decode_terminal, encode_job
from penstock.sampling import SamplingParams
from tests.engine.run import engine_of

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny"

Event = tuple[str, bytes]
"""Event id and event JSON, as they stand in a result stream."""


def serve(engine: Engine) -> Served:
    """What the consumer knows of the model once its engine is ready."""
    ready = Ready(
        model=engine.config.model,
        model_path=str(engine.model_path),
        fingerprint=engine.fingerprint,
        max_model_len=engine.sizes.max_model_len,
        vocab_size=engine.vocab_size,
        max_num_seqs=engine.sizes.max_num_seqs,
        num_blocks=engine.sizes.num_blocks,
        block_size=engine.sizes.block_size,
        eos_token_ids=engine.eos_token_ids,
    )
    tokenizer = PromptTokenizer(engine.model_path, ready.vocab_size)
    return Served(
        model="tiny",
        ready=ready,
        tokenizer=tokenizer,
        token_texts=TokenTexts(tokenizer.tokenizer),
        defaults=Defaults.load(engine.model_path),
        result_ttl_s=60,
    )


def lease_of(job: Job, number: int = 1, deliveries: int = 1) -> Lease:
    """A lease of the job that is the queue's `number`th."""
    job_id = JobId("standard", f"{number}-0", None)
    return Lease(job_id=job_id, key=str(job_id), deliveries=deliveries, job=encode_job(job))


class RunOfJob:
    """One run of a job: what it has published, and its ending once it has one."""

    def __init__(self, running: RunningJob, published: Sequence[Event] = ()) -> None:
        self.running = running
        self.events: list[Event] = list(published)
        """Of earlier runs and of this one."""
        self.ending: Ending | None = None
        if running.finished:  # all that was missing is its end, as after admission in the consumer
            self._end()

    @property
    def request_id(self) -> str:
        return self.running.request.request_id

    @property
    def terminal(self) -> Done | Failed:
        """The terminal event."""
        assert self.ending is not None, "the job has not ended"
        return decode_terminal(self.ending.terminal)

    def add(self, output: Output) -> bool:
        """Take a step's output; whether its sample has ended here and not yet in the engine."""
        try:
            return self.running.add(output)
        except EngineRefused as error:
            self.ending = self.running.failure(Error(type=error.kind, message=str(error)))
            return False

    def publish(self) -> None:
        """Take the progress that a streamed job has made, and in the end its ending."""
        if self.running.finished:
            self._end()
        elif self.running.job.stream:
            self.events += [(progress.event_id, progress.event) for progress in self.running.take_progress()]

    def _end(self) -> None:
        progress, self.ending = self.running.end()
        self.events += [(one.event_id, one.event) for one in progress]
        if self.ending.tokens:
            self.events.append((self.ending.tokens_id, self.ending.tokens))


class InProcess:
    """An engine with the consumer's side on top of it, without a server and a socket between them."""

    def __init__(self, **settings: Any) -> None:
        self.engine = engine_of(TINY, **settings)
        self.served = serve(self.engine)
        self.admission = Admission(self.served)

    def admit(self, lease: Lease, published: Sequence[Event] = ()) -> RunOfJob:
        """A run that goes on after what earlier ones have `published`. Raises JobRefused."""
        return RunOfJob(self.admission.admit(lease, published), published)

    def drive(
        self, runs: Sequence[RunOfJob], rng: random.Random | None = None, steps: int | None = None
    ) -> None:
        """Run what has not ended yet, to the end or for some steps, and publish as it goes: after each
        step, or now and then where there is `rng`."""
        live = {run.request_id: run for run in runs if run.ending is None}
        self.engine.add([run.running.remaining() for run in live.values()])
        while self.engine.has_work and steps != 0:
            steps = None if steps is None else steps - 1
            for output in self.engine.step():
                run = live.get(output.request_id)
                if run is not None and run.ending is None and run.add(output):
                    self.engine.abort([], [(output.request_id, output.sample)])
            for run in list(live.values()):
                if run.ending is None and (run.running.finished or rng is None or rng.random() < 0.4):
                    run.publish()
                if run.ending is not None:
                    del live[run.request_id]
        assert steps is not None or not live, "the engine has no more work and some jobs have not ended"

    def answer(self, *jobs: Job) -> list[Done]:
        """The jobs' terminal events, of one run together; none of them may fail."""
        runs = [self.admit(lease_of(job, number)) for number, job in enumerate(jobs, 1)]
        self.drive(runs)
        terminals = [run.terminal for run in runs]
        for terminal in terminals:
            assert isinstance(terminal, Done), terminal
        return [terminal for terminal in terminals if isinstance(terminal, Done)]

    def ask(self, prompt: str, **params: Any) -> Completion:
        """The only output of a job with these sampling parameters."""
        (output,) = self.ask_all(prompt, **params)
        return output

    def ask_all(self, prompt: str, **params: Any) -> list[Completion]:
        """All outputs of a job with these sampling parameters, with their token ids."""
        job = Job(prompt=prompt, sampling_params=SamplingParams(**params), return_token_ids=True)
        return self.answer(job)[0].outputs
