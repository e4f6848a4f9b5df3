"""A job that is cut off anywhere and goes on elsewhere ends as one that was left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.admission import Admission
from consumer.lease import Ending, Progress
from consumer.running import RunningJob
from consumer.served import Served
from engine.request import Output, Request, Sample
from penstock.messages import Done, Job, SamplingParams, Tokens, decode_event
from tests.consumer.models import EOS, save_model
from tests.consumer.scripted_engine import logprobs_of
from tests.consumer.served import make_lease, make_served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(save_model(tmp_path_factory.mktemp("model")))


class Engine:
    """Gives each sample its tokens, some at a time, from where it was cut off."""

    def __init__(self, request: Request, scripts: list[list[int]]) -> None:
        self.request = request
        self.scripts = scripts
        self.at = {sample.index: len(sample.output_token_ids) for sample in request.samples}
        for sample in request.samples:
            self._check(sample)

    def _check(self, sample: Sample) -> None:
        done = sample.output_token_ids
        assert done == self.scripts[sample.index][: len(done)]

    def step(self, pick: int, count: int) -> Output | None:
        """Some tokens of one of the samples that run."""
        if not self.at:
            return None
        index = sorted(self.at)[pick % len(self.at)]
        params, script, position = self.request.params, self.scripts[index], self.at[index]
        end = script.index(EOS) + 1 if EOS in script else params.max_tokens
        end = min(end, params.max_tokens)
        ids = script[position : min(position + count, end)]
        self.at[index] += len(ids)
        ended = self.at[index] == end
        if ended:
            del self.at[index]
        stopped = ended and script[end - 1] == EOS
        return Output(
            request_id=self.request.request_id,
            token_ids=ids,
            sample=index,
            finish_reason="stop" if stopped else "length" if ended else None,
            stop_token_id=EOS if stopped else None,
            logprobs=[logprobs_of(token, 1) for token in ids],
            num_cached_tokens=2,
        )

    def stop(self, sample: int) -> None:
        """Drop a sample."""
        self.at.pop(sample, None)


class Stream:
    """The job's result stream: refuses what is out of order, as the server does."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, bytes]] = []
        self.count = 0

    def publish(self, progress: list[Progress]) -> None:
        for item in progress:
            assert item.num_before == self.count
            self.add(item.event_id, item.event)

    def add(self, event_id: str, data: bytes) -> None:
        event = decode_event(data)
        assert isinstance(event, Tokens)
        self.count += len(event.token_ids)
        assert event_id == f"{self.count}-0"
        self.entries.append((event_id, data))


def run(job: RunningJob, engine: Engine, stream: Stream, moves: list[tuple[int, int, bool]]) -> Ending | None:
    """Until it ends; None where the moves are over before."""
    for pick, count, due in moves:
        output = engine.step(pick, count)
        if output is None:
            break
        if job.add(output):
            engine.stop(output.sample)
        if job.finished:
            break
        if due:
            stream.publish(job.take_progress())
    if not job.finished:
        return None
    progress, ending = job.end()
    stream.publish(progress)
    if ending.tokens_id:
        stream.add(ending.tokens_id, ending.tokens)
    assert ending.terminal_id == f"{stream.count}-1"
    return ending


moves = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.booleans()), max_size=60)
scripts = st.lists(
    st.text(alphabet="ab€", min_size=30, max_size=30).map(lambda text: list(text.encode())),
    min_size=3,
    max_size=3,
)


@given(
    scripts,
    st.lists(st.none() | st.integers(0, 25), min_size=3, max_size=3),
    st.lists(moves, max_size=3),
    st.booleans(),
    st.integers(0, 6),
)
def test_whatever_is_cut_off_goes_on_to_the_same_end(
    served: Served,
    scripts: list[list[int]],
    ends: list[int | None],
    cuts: list[list[tuple[int, int, bool]]],
    include: bool,
    min_tokens: int,
) -> None:
    for script, end in zip(scripts, ends, strict=True):
        if end is not None and end >= min_tokens:
            script[end] = EOS
    params = SamplingParams(
        n=3,
        max_tokens=24,
        min_tokens=min_tokens,
        stop=["ba€", "aab", "bbbb"],
        include_stop_str_in_output=include,
        logprobs=1,
    )
    asked = Job(prompt="abc", stream=True, return_token_ids=True, sampling_params=params)
    to_the_end = [(0, 3, True)] * 200

    def whole() -> Ending | None:
        job = Admission(served).admit(make_lease(asked), [])
        return run(job, Engine(job.remaining(), scripts), Stream(), to_the_end)

    stream, ending = Stream(), None
    for delivery, until in enumerate([*cuts, to_the_end], 1):
        job = Admission(served).admit(make_lease(asked, delivery), stream.entries)
        if job.finished:
            ending = job.end()[1]
            break
        ending = run(job, Engine(job.remaining(), scripts), stream, until)
        if ending is not None:
            break
        # The engine alone dies: what was not published is kept too.
        ending = run(job, Engine(job.remaining(), scripts), stream, until)
        if ending is not None:
            break
    expected = whole()
    assert ending is not None
    assert expected is not None
    found, done = decode_event(ending.terminal), decode_event(expected.terminal)
    assert isinstance(found, Done)
    assert isinstance(done, Done)
    assert found.outputs == done.outputs
    assert found.usage.completion_tokens == done.usage.completion_tokens == stream.count
    for output in found.outputs:
        events = [event for _, data in stream.entries if (event := decode_event(data))]
        own = [event for event in events if isinstance(event, Tokens) and event.sample == output.index]
        assert "".join(event.text for event in own) == output.text
        assert [token for event in own for token in event.token_ids] == output.token_ids
        assert [token for event in own for token in event.logprobs or ()] == output.logprobs
