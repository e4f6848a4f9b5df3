"""The scheduler under random operations, with a runner that checks what every cache slot holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.batch import NO_TOKEN, NOTHING_ALLOWED, Batch, StepResult
from engine.blocks import BlockManager
from engine.request import Output, RepetitionDetection, Request, RequestParams, Sample
from engine.scheduler import Limits, Scheduler
from tests.engine.runner_model import RunnerModel
from tests.engine.scheduling import COMPLETE, EOS, FORBIDDEN, STOP, VOCAB_SIZE, Follower

WINDOW = 24
EMPTY_BATCH = Batch(
    retired_rows=[],
    new_rows=[],
    copied_blocks=[],
    appended_blocks=[],
    rows=[],
    num_scheduled_tokens=[],
    sampled_rows=[],
)


@dataclass
class Asked:
    """A request, and what has come of its samples."""

    request: Request
    constrained: bool
    outputs: dict[int, list[int]]
    scorer: int | None = None
    withheld: int | None = None
    """A sample that has ended already: its end comes with the prompt's logprobs."""
    cached: dict[int, int] = field(default_factory=dict)
    """By sample: what its first row began with."""
    told: set[int] = field(default_factory=set)
    """Samples that have had an output."""

    def ending(self, output: list[int], window: int) -> tuple[str | None, int | None]:
        """Why an output is over, looked at afresh."""
        params = self.request.params
        long_enough = len(output) >= params.min_tokens
        if long_enough and output[-1] in (STOP, EOS):
            return "stop", output[-1]
        if self.constrained and output[-1] == FORBIDDEN:
            return "error", None
        if self.constrained and output[-1] == COMPLETE:
            return "stop", None
        total = len(self.request.prompt_token_ids) + len(output)
        if len(output) >= params.max_tokens or total >= window:
            return "length", None
        if long_enough and params.repetition and repeats(output, params.repetition):
            return "repetition", None
        return None, None


def repeats(output: list[int], asked: RepetitionDetection) -> bool:
    """The definition, word by word."""
    for size in range(asked.min_pattern_size, asked.max_pattern_size + 1):
        tail = output[-size:]
        if len(tail) == size and output[-size * asked.min_count :] == tail * asked.min_count:
            return True
    return False


params = st.builds(
    RequestParams,
    max_tokens=st.integers(1, 12),
    seed=st.just(0),
    stop_token_ids=st.just((STOP,)),
    min_tokens=st.sampled_from([0, 0, 1]),
    logprobs=st.sampled_from([None, None, 0]),
    prompt_logprobs=st.sampled_from([None, None, None, 1]),
    repetition=st.sampled_from([None, None, RepetitionDetection(max_pattern_size=2, min_count=3)]),
    pooling=st.sampled_from(["last", "mean"]),
)
tokens = st.one_of(
    st.integers(0, 5), st.integers(0, 5), st.integers(0, VOCAB_SIZE - 1), st.sampled_from([0, 1])
)
samples = st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, aborts and steps in any order; a step's results may come after the next step was scheduled."""

    @initialize(
        num_seqs=st.integers(1, 4),
        blocks=st.integers(1, 12),
        size=st.integers(1, 5),
        budget=st.integers(1, 20),
        prefix_cache=st.booleans(),
        depth=st.integers(0, 1),
    )
    def start(
        self, num_seqs: int, blocks: int, size: int, budget: int, prefix_cache: bool, depth: int
    ) -> None:
        limits = Limits(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=min(WINDOW, blocks * size),
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(EOS,),
        )
        self.window = limits.max_model_len
        self.final_depth = depth
        self.scheduler = Scheduler(limits, BlockManager(blocks, size, prefix_cache))
        self.runner = RunnerModel(size, budget, self.window)
        self.results: list[StepResult] = []
        self.asked: dict[str, Asked] = {}
        self.live: set[tuple[str, int]] = set()
        self.count = 0

    @rule(
        prefix=st.integers(0, 20),
        kind_of_prefix=st.integers(1, 2),
        suffix=st.lists(st.integers(0, 5), max_size=3),
        kind=st.sampled_from(["generate", "generate", "generate", "score", "embed"]),
        params=params,
        indices=samples,
        resumed=st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=4, max_size=4),
        constrained=st.booleans(),
    )
    def add(
        self,
        prefix: int,
        kind_of_prefix: int,
        suffix: list[int],
        kind: str,
        params: RequestParams,
        indices: list[int],
        resumed: list[list[int]],
        constrained: bool,
    ) -> None:
        self.count += 1
        kept = resumed if kind == "generate" else [[]] * 4
        changes = {"seed": self.count, "min_tokens": min(params.min_tokens, params.max_tokens)}
        request = Request(
            request_id=f"r{self.count}",
            prompt_token_ids=[kind_of_prefix] * prefix + suffix,
            params=RequestParams(**{f: getattr(params, f) for f in params.__struct_fields__} | changes),
            samples=[Sample(index=index, output_token_ids=kept[i]) for i, index in enumerate(indices)],
            kind=kind,
        )
        outputs = {sample.index: list(sample.output_token_ids) for sample in request.samples}
        asked = self.asked[request.request_id] = Asked(request, constrained and kind == "generate", outputs)
        self.live |= {(request.request_id, index) for index in indices}
        endings = {index: asked.ending(output, self.window)[0] for index, output in outputs.items() if output}
        for output in self.scheduler.add(request, Follower() if asked.constrained else None):
            assert not output.token_ids
            if output.error is not None:
                self.live -= {(request.request_id, index) for index in indices}
                continue
            assert output.finish_reason == endings[output.sample]
            self.live.remove((request.request_id, output.sample))
        live = [index for index in sorted(indices) if (request.request_id, index) in self.live]
        if len(live) == 1 and kind == "generate" and params.prompt_logprobs is not None:
            asked.withheld = live[0] if endings.get(live[0]) else None
        assert asked.withheld is not None or not any(endings.get(index) for index in live)
        if live and (kind == "score" or (kind == "generate" and params.prompt_logprobs is not None)):
            asked.scorer = live[0]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name, _ = data.draw(st.sampled_from(sorted(self.live)))
        assert self.scheduler.abort(name)
        assert not self.scheduler.abort(name)
        self.live = {sample for sample in self.live if sample[0] != name}

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort_sample(self, data: st.DataObject) -> None:
        name, index = data.draw(st.sampled_from(sorted(self.live)))
        assert self.scheduler.abort_sample(name, index)
        assert not self.scheduler.abort_sample(name, index)
        self.live.remove((name, index))

    @rule(ends=st.booleans())
    def hear_of_the_backlog(self, ends: bool) -> None:
        self.scheduler.backlog_ends = ends

    @precondition(lambda self: len(self.results) < 2)
    @rule(data=st.data())
    def schedule(self, data: st.DataObject) -> None:
        batch = self.scheduler.schedule()
        size = len(batch.sampled_rows)
        sampled = data.draw(st.lists(tokens, min_size=size, max_size=size))
        if size and data.draw(st.integers(0, 30)) == 0:
            sampled[0] = data.draw(st.sampled_from([NO_TOKEN, NOTHING_ALLOWED]))
        self.run(batch, sampled)

    @precondition(lambda self: self.results)
    @rule()
    def update(self) -> None:
        self.retire()

    def run(self, batch: Batch, sampled: list[int]) -> None:
        if not batch.rows:  # nobody runs it, so it must not carry what has changed
            assert batch == EMPTY_BATCH
            return
        self.results.append(self.runner.run(batch, sampled))
        for new in batch.new_rows:
            asked = self.asked[f"r{new.params.seed}"]
            known = asked.outputs[new.sample] if asked.withheld is None else []
            assert new.token_ids == asked.request.prompt_token_ids + known
            assert new.num_prompt_tokens == len(asked.request.prompt_token_ids)
            asked.cached.setdefault(new.sample, new.num_computed_tokens)
            is_mean = new.kind == "embed" and new.params.pooling == "mean"
            if is_mean or (new.sample == asked.scorer and new.sample not in asked.told):
                assert new.num_computed_tokens == 0

    def retire(self) -> None:
        batch = self.runner.retire()
        failed: set[str] = set()
        for row in batch.rows:
            follower = self.scheduler.constraint_of(row)
            new = self.runner.rows[row].new
            asked = self.asked[f"r{new.params.seed}"]
            if (asked.request.request_id, new.sample) not in self.live or asked.withheld is not None:
                assert follower is None
            elif asked.constrained:
                assert isinstance(follower, Follower)
                assert follower.seen == asked.outputs[new.sample]
        for output in self.scheduler.update(batch, self.results.pop(0)):
            assert output.request_id not in failed
            self.take(output)
            if output.error is not None:
                failed.add(output.request_id)

    def take(self, output: Output) -> None:
        """An output is of a live sample, and ends it at most once and for the right reason."""
        asked = self.asked[output.request_id]
        key = (output.request_id, output.sample)
        assert key in self.live
        if output.error is not None:
            assert output.error_type == ("invalid_job" if "allowed" in output.error else "engine_error")
            self.live = {sample for sample in self.live if sample[0] != output.request_id}
            return
        self.check_first(asked, output)
        if asked.withheld is not None:
            assert not output.token_ids
            ended = asked.ending(asked.outputs[output.sample], self.window)
            assert (output.finish_reason, output.stop_token_id) == ended
        elif asked.request.kind == "generate":
            assert len(output.token_ids) == 1
            so_far = asked.outputs[output.sample]
            so_far += output.token_ids
            assert (output.finish_reason, output.stop_token_id) == asked.ending(so_far, self.window)
            assert len(output.logprobs) == (asked.request.params.logprobs is not None)
        else:
            assert not output.token_ids
            assert output.finish_reason == "stop"
            num_prompt = len(asked.request.prompt_token_ids)
            assert output.embedding == ([float(num_prompt)] if asked.request.kind == "embed" else [])
        if output.finish_reason is not None:
            self.live.remove(key)

    def check_first(self, asked: Asked, output: Output) -> None:
        """What comes once comes with the first output."""
        num_prompt = len(asked.request.prompt_token_ids)
        is_first = output.sample not in asked.told
        asked.told.add(output.sample)
        expected = range(1, num_prompt) if is_first and output.sample == asked.scorer else range(0)
        assert [entry.logprob for entry in output.prompt_logprobs] == [-float(i) for i in expected]
        found = min(asked.cached[output.sample], num_prompt) if is_first else 0
        assert output.num_cached_tokens in (0, found)
        assert output.num_cached_tokens == 0 or self.scheduler.blocks.prefix_cache

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        """Whatever happened: everything ends, and nothing is left over."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5_000):
            if len(self.results) <= self.final_depth:
                batch = self.scheduler.schedule()
                self.run(batch, [i % 3 for i in range(len(batch.sampled_rows))])
                if not self.results:
                    break
                if batch.rows and len(self.results) <= self.final_depth:
                    continue
            self.retire()
            self.scheduler.check_integrity()
        assert not self.scheduler.has_work
        assert not self.live
        assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_blocks


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
