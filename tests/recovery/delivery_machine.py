"""Clients, consumers that work, stall, die and come back, and one real server, in any order."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from consumer.lease import Ending, Lease
from penstock import Job
from penstock.keys import DEFAULT_LANE, GROUP, Keys
from tests.recovery.delivery_actor import Actor, Run
from tests.recovery.delivery_audit import audit
from tests.recovery.delivery_clients import PICK, ClientRules
from tests.recovery.delivery_model import LEASE_MS
from tests.recovery.delivery_server import Connections

KEYS = Keys()
MAX_ACTORS = 4
DELAYS = st.sampled_from([0, LEASE_MS])
SOME = st.lists(PICK, min_size=1, max_size=6)
FEW = st.lists(PICK, min_size=1, max_size=2)
at_work = precondition(lambda self: any(actor.runs for actor in self.actors))


class DeliveryMachine(ClientRules):
    """Consumers are picked by number, runs of theirs by more numbers.

    Nothing waits for time to pass: leases run out and delays end where a rule sets their idle times.
    """

    def __init__(self, connections: Connections) -> None:
        super().__init__(connections)
        self.link = connections.link
        self.num_started = 0
        self.silent: set[str] = set()
        """Names whose last heartbeat is so old that they are taken for dead."""
        self.actors = [self.start("alpha"), self.start("beta")]
        first = [Job(prompt="x", stream=n % 3 > 0) for n in range(8)]
        self.accept(self.do(self.client.submit_many(first)), DEFAULT_LANE, first, [""] * len(first))
        for actor in self.actors:
            self.take(actor, 3)

    def start(self, name: str, *, takes_over: bool = False) -> Actor:
        """A new process of a consumer."""
        self.num_started += 1
        unique = f"{name}.{self.num_started:08x}"
        take_over = name if takes_over else None
        return self.do(Actor.start(self.link, unique, self.model.declared, take_over))

    def actor(self, pick: int) -> Actor:
        """One of the consumers, dead ones included that don't know it yet."""
        return self.actors[pick % len(self.actors)]

    def worker(self, pick: int) -> Actor:
        """One of those that believe to have a job."""
        workers = [actor for actor in self.actors if actor.runs]
        return workers[pick % len(workers)]

    # Taking

    @rule(who=PICK, credit=st.integers(1, 4))
    def claim(self, who: int, credit: int) -> None:
        self.take(self.actor(who), credit)

    def take(self, actor: Actor, credit: int) -> list[Lease]:
        if actor.looks_up_lanes:
            actor.lanes, actor.looks_up_lanes = set(self.model.declared), False
        leases = self.do(actor.claim(credit))
        for lease in leases:
            self.model.claimed(lease, actor.name, actor.reclaims)
        return leases

    @rule(who=PICK)
    def claim_all(self, who: int) -> None:
        """With credit for everything, everything comes: nothing that may be claimed is overlooked."""
        actor = self.actor(who)
        if actor.looks_up_lanes:
            actor.lanes = set(self.model.declared)
        claimable = {
            job.job_id
            for job in self.model.live()
            if job.lane in actor.lanes and self.model.may_claim(job, actor.reclaims)
        }
        # The first ends a scan for expired leases that others began.
        taken = self.take(actor, 1000) + self.take(actor, 1000)
        assert {lease.key for lease in taken} == claimable

    @rule(who=PICK)
    def listen(self, who: int) -> None:
        """The control stream tells of every cancelled job, and of new lanes."""
        actor = self.actor(who)
        assert self.do(actor.broker.wait_for_cancelled(1)) == actor.unheard
        actor.unheard.clear()
        actor.lanes = set(self.model.declared)

    @rule(who=PICK)
    def lose_connection(self, who: int) -> None:
        """Nobody's idle time can be trusted for a while; and maybe it is a server that knows no script."""
        actor = self.actor(who)
        actor.broker.connection_lost()
        actor.reclaims = False
        actor.looks_up_lanes = True
        self.server.script_flush()

    # Working

    @at_work
    @rule(who=PICK, is_late=st.booleans())
    def renew(self, who: int, is_late: bool) -> None:
        """In time; or late, and nobody else was there in the meantime, if it is still its own."""
        actor = self.worker(who)
        if is_late:
            self.let_expire(actor.name)
        held = [run for run in actor.runs if self.model.holds(run.lease, actor.name)]
        lost = self.do(actor.broker.renew([run.lease for run in actor.runs]))
        self.check_lost(actor, lost, actor.runs, held)
        actor.forget(lost)
        self.renewed(held)

    @at_work
    @rule(who=PICK, picks=SOME, count=st.integers(1, 3), repeats=st.booleans(), is_stubborn=st.booleans())
    def publish(self, who: int, picks: list[int], count: int, repeats: bool, is_stubborn: bool) -> None:
        """Some runs publish; maybe once more, as if the reply was lost; maybe they go on without a lease."""
        actor = self.worker(who)
        runs = [run for run in actor.some(picks) if run.num_left]
        held = [run for run in runs if self.model.holds(run.lease, actor.name)]
        progress = [event for run in runs for event in run.progress(count)]
        for _ in range(1 + repeats):
            lost = self.do(actor.broker.publish(progress))
            self.check_lost(actor, lost, runs, held)
        self.renewed(held)
        for run in held:
            self.model.jobs[run.lease.key].num_published = run.num_published
        if not is_stubborn:
            actor.forget(lost)

    @at_work
    @rule(who=PICK, picks=FEW, went_well=st.booleans(), repeats=st.booleans(), cost=st.integers(0, 5000))
    def commit(self, who: int, picks: list[int], went_well: bool, repeats: bool, cost: int) -> None:
        actor = self.worker(who)
        runs = actor.some(picks)
        held = [run for run in runs if self.model.holds(run.lease, actor.name)]
        endings = [run.done(cost) if went_well else run.failed(cost) for run in runs]
        lost = self.do(actor.broker.commit(endings))
        self.check_lost(actor, lost, runs, held)
        if repeats:
            assert len(self.do(actor.broker.commit(endings))) == len(runs)
        for run in held:
            job = self.model.jobs[run.lease.key]
            if went_well:
                job.num_published += run.num_left
            self.model.ended(job, "done" if went_well else "failed")
        actor.forget([run.lease for run in runs])

    @at_work
    @rule(who=PICK, pick=PICK, delay_ms=DELAYS, repeats=st.booleans())
    def fail(self, who: int, pick: int, delay_ms: int, repeats: bool) -> None:
        """A failure that is worth another attempt, if there is one left."""
        actor = self.worker(who)
        for run in actor.some([pick]):
            job = self.model.jobs[run.lease.key]
            held = self.model.holds(run.lease, actor.name)
            expected = self.model.failed(job, delay_ms) if held else "lost"
            ending: Ending = run.failed(0, retryable=True)
            assert self.do(actor.broker.fail(ending, delay_ms)) == expected
            if repeats:
                assert self.do(actor.broker.fail(ending, delay_ms)) == "lost"
            actor.forget([run.lease])

    @at_work
    @rule(who=PICK, picks=FEW, delay_ms=DELAYS, repeats=st.booleans())
    def release(self, who: int, picks: list[int], delay_ms: int, repeats: bool) -> None:
        actor = self.worker(who)
        runs = actor.some(picks)
        held = [run for run in runs if self.model.holds(run.lease, actor.name)]
        self.do(actor.broker.release([run.lease for run in runs], delay_ms))
        if repeats:
            self.do(actor.broker.release([run.lease for run in runs], LEASE_MS))
        for run in held:
            self.model.released(self.model.jobs[run.lease.key], claimable=delay_ms == 0)
        actor.forget([run.lease for run in runs])

    def check_lost(
        self, actor: Actor, lost: Sequence[Lease], runs: Sequence[Run], held: Sequence[Run]
    ) -> None:
        """The server takes for lost exactly the leases that are."""
        told = {lease.request_id for lease in lost}
        assert told == {run.lease.request_id for run in runs} - {run.lease.request_id for run in held}

    def renewed(self, held: Sequence[Run]) -> None:
        for run in held:
            self.model.jobs[run.lease.key].claimable = False

    # Trouble

    @at_work
    @rule(who=PICK, by=PICK, credit=st.integers(1, 4))
    def overtake(self, who: int, by: int, credit: int) -> None:
        """A consumer stands still for a lease's time, and others go on with its jobs. It does not know."""
        slow = self.worker(who)
        self.let_expire(slow.name)
        self.take(slow if by % 4 == 0 else self.actor(by), credit)

    @rule(who=st.none() | PICK)
    def time_passes(self, who: int | None) -> None:
        """A lease's time for one consumer that stands still, or for what was released with a delay."""
        self.let_expire("" if who is None else self.actor(who).name)

    def let_expire(self, owner: str) -> None:
        for job in self.model.live():
            if job.phase in ("held", "released") and job.owner == owner:
                entry, lane = job.job_id.split(".")[1], KEYS.jobs(job.lane)
                self.server.xclaim(lane, GROUP, owner or "-", 0, [entry], idle=LEASE_MS, justid=True)
                job.claimable = True

    @rule(who=PICK, takes_over=st.booleans(), is_known=st.booleans())
    def die(self, who: int, takes_over: bool, is_known: bool) -> None:
        """A process dies without a word, or is only stopped and will go on; another takes its place."""
        old = self.actor(who)
        name = old.name.split(".")[0]
        new = self.start(name, takes_over=takes_over)
        if takes_over:
            for job in self.model.live():
                if job.owner.startswith(f"{name}."):
                    self.model.retired(job.owner, new.lanes)
            self.silent = {other for other in self.silent if not other.startswith(f"{name}.")}
        if is_known or len(self.actors) >= MAX_ACTORS:
            self.actors.remove(old)
        self.actors.append(new)

    @rule(who=PICK, is_silent=st.booleans())
    def beat(self, who: int, is_silent: bool) -> None:
        """A heartbeat, of now or of long ago."""
        actor = self.actor(who)
        at_ms = 1 if is_silent else 4_000_000_000_000
        beat = f'{{"model":"m","phase":"ready","at_ms":{at_ms},"interval_ms":20000}}'
        self.server.hset(KEYS.consumers, actor.name, beat)
        if is_silent:
            self.silent.add(actor.name)
        else:
            self.silent.discard(actor.name)

    @precondition(lambda self: self.silent)
    @rule(who=PICK)
    def sweep(self, who: int) -> None:
        """The silent are taken for dead, and their leases released; nobody else's are."""
        actor = self.actor(who)
        actor.lanes, actor.looks_up_lanes = set(self.model.declared), False  # it looks them up
        expected = 0
        for name in self.silent - {actor.name}:
            expected += self.model.retired(name, actor.lanes)
            self.silent.remove(name)  # its heartbeat is gone as well
        assert self.do(actor.broker.sweep()) == expected

    @invariant()
    def sound(self) -> None:
        audit(self.server, self.model)

    # The end

    def teardown(self) -> None:
        """Whatever happened: every accepted job ends, once, and nothing is left over."""
        self.resume()
        last = self.start("omega")
        for _ in range(100):
            if not self.model.live():
                break
            for owner in {job.owner for job in self.model.live()}:
                self.let_expire(owner)
            self.take(last, 8)
            for run in last.runs:
                job = self.model.jobs[run.lease.key]
                job.num_published += run.num_left
                self.model.ended(job, "done")
            assert self.do(last.broker.commit([run.done(1) for run in last.runs])) == []
            last.runs.clear()
        assert not self.model.live()
        audit(self.server, self.model)
        assert all(job.end for job in self.model.jobs.values())
        assert self.server.exists(KEYS.attempts) == 0
        assert self.server.xlen(KEYS.jobs(DEFAULT_LANE)) == 0
