"""The verbs that operate a queue: dead letters, lanes, pause and resume. Light, as `producer.cli` is."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import App, Group, Parameter

from producer.flags import ServerFlags

OPERATE: Final = Group("Operate", sort_key=3)
COMMANDS: Final = Group("Commands", sort_key=0)

_DEAD = """\
Examples:
  penstock dead ls
  penstock dead show 1763820000000-0
  penstock dead requeue --all
"""
_LANES = """\
Examples:
  penstock lanes
  penstock lanes set urgent --weight 5
  penstock lanes set alice --max-jobs 10000
  penstock lanes set --whole-queue --max-jobs none
"""

dead: Final = App(
    name="dead",
    group_commands=COMMANDS,
    group=OPERATE,
    sort_key=2,
    help="List jobs that failed for good; try again or drop them.",
    help_epilogue=_DEAD,
)
lanes: Final = App(
    name="lanes",
    group_commands=COMMANDS,
    group=OPERATE,
    sort_key=1,
    help="Show the lanes: what waits in each, and how it is served.",
    help_epilogue=_LANES,
)
pause: Final = App(
    name="pause",
    group=OPERATE,
    sort_key=3,
    help_epilogue="",
    help="Let consumers take no more jobs; what runs goes on.",
)
resume: Final = App(name="resume", group=OPERATE, sort_key=4, help_epilogue="", help="Undo `pause`.")

_Server = Annotated[ServerFlags, Parameter(name="*")]
_Json = Annotated[bool, Parameter(negative=(), show_default=False)]
_Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
_NO_SERVER_NAMED = ServerFlags()


@dead.command(name="ls", sort_key=1, help_epilogue="")
def list_dead(*, json: _Json = False, server: _Server = _NO_SERVER_NAMED) -> int:
    """List the dead letters, oldest first, with what went wrong at each attempt.

    Parameters
    ----------
    json
        Print a JSON object for each, a line each.
    """
    from producer.dead import run_list

    return run_list(server.where, as_json=json)


@dead.command(sort_key=2, help_epilogue="")
def show(letter: str, /, *, json: _Json = False, server: _Server = _NO_SERVER_NAMED) -> int:
    """Show one dead letter: the job, its prompt shortened, and its whole history.

    Parameters
    ----------
    letter
        The dead letter's id, as `penstock dead ls` prints it.
    json
        Print one JSON object, with the whole job.
    """
    from producer.dead import run_show

    return run_show(server.where, letter, as_json=json)


@dead.command(sort_key=3, help_epilogue="")
def requeue(*letters: str, all: _Flag = False, server: _Server = _NO_SERVER_NAMED) -> int:
    """Make a new job of each, with attempts anew, at the end of its lane; prints the new jobs' ids.

    Parameters
    ----------
    letters
        Ids, as `penstock dead ls` prints them.
    all
        Every letter that is there now.
    """
    from producer.dead import run_requeue

    return run_requeue(server.where, letters, everything=all)


@dead.command(sort_key=4, help_epilogue="")
def drop(*letters: str, all: _Flag = False, server: _Server = _NO_SERVER_NAMED) -> int:
    """Delete dead letters; their jobs stay failed.

    Parameters
    ----------
    letters
        Ids, as `penstock dead ls` prints them.
    all
        Every letter that is there now.
    """
    from producer.dead import run_drop

    return run_drop(server.where, letters, everything=all)


@lanes.default
def show_lanes(*, json: _Json = False, server: _Server = _NO_SERVER_NAMED) -> int:
    """Show the lanes: what waits in each, and how it is served.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from producer.lanes import run_show

    return run_show(server.where, as_json=json)


@lanes.command(name="set", help_epilogue=_LANES)
def set_lane(
    lane: str | None = None,
    /,
    *,
    weight: float | None = None,
    max_jobs: str | None = None,
    whole_queue: _Flag = False,
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """Set how a lane is served; a lane that does not exist yet is declared.

    Parameters
    ----------
    lane
        The lane.
    weight
        Its share of the tokens where several lanes wait, in proportion to the others' weights; 1 at first.
    max_jobs
        Outstanding jobs beyond which an enqueue is refused; `none` takes the lane's own limit back.
    whole_queue
        Instead of a lane: --max-jobs is the limit of each lane that has none of its own.
    """
    from producer.lanes import run_set

    return run_set(server.where, lane, weight, max_jobs, whole_queue=whole_queue)


@pause.default
def pause_queue(*, lane: str | None = None, server: _Server = _NO_SERVER_NAMED) -> int:
    """Let consumers take no more jobs; what runs goes on, and jobs can be enqueued.

    Parameters
    ----------
    lane
        Pause this lane alone; by default the whole queue.
    """
    from producer.lanes import run_pause

    return run_pause(server.where, lane, paused=True)


@resume.default
def resume_queue(*, lane: str | None = None, server: _Server = _NO_SERVER_NAMED) -> int:
    """Undo `pause` of the same lane, or of the whole queue.

    Parameters
    ----------
    lane
        Resume this lane; by default the whole queue.
    """
    from producer.lanes import run_pause

    return run_pause(server.where, lane, paused=False)
