"""The command line. Every verb's work is in a module of its own, imported when the verb runs.

This module imports neither redis nor rich, so that help and light verbs start at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

try:
    from cyclopts import App, CycloptsError, Group, Parameter
except ImportError:
    sys.exit("penstock: the command line is not installed. Install it with: pip install 'penstock[cli]'")

from penstock.errors import PenstockError
from penstock.keys import DEFAULT_LANE
from producer.flags import SERVE, SERVER, DeliveryFlags, PromptFlags, ReplyFlags, SamplingFlags, ServerFlags
from producer.gateway.flags import GATEWAY, settings_beside
from producer.operate import dead, lanes, pause, resume
from producer.tenants import gateway, keys, webhooks

CONSUMER = Group("Consumer", sort_key=13)
TRY = Group("Try it", sort_key=0)
ASK = Group("Ask", sort_key=2)
OTHER = Group("Other", sort_key=4)

_EXAMPLES = """\
Examples:
  penstock demo                              prove that it all works
  penstock up                                server, consumer and gateway, here
  penstock submit "What is 12 + 30?"         from another terminal
  penstock run rows.jsonl -o answers.jsonl   a dataset; resumes when run again
"""

_UP = """\
Examples:
  penstock up
  penstock up --model Qwen/Qwen3-0.6B --port 6399 --max-num-seqs 32
"""
_CONSUMER = """\
Example:
  penstock consumer --redis redis://queue:6379 --model Qwen/Qwen3-8B
"""
_SUBMIT = """\
Examples:
  penstock submit "What is 12 + 30?"
  penstock submit --stream --temperature 0.7 < letter.txt
  penstock submit "A person, as JSON." --json-schema person.json
  penstock submit --kind score --raw "The sky is blue."
  penstock submit --lane urgent --deadline 30 "What is 12 + 30?"
  penstock submit --params '{"logit_bias": {"42": -100}}' "Hello"
  penstock submit --fields '{"custom_id": "a"}' "Hello"

Exit status: 0 answered; 1 refused, failed, or not answered within --timeout;
130 stopped by Ctrl-C. A full queue refuses, and says when to try again.
"""
_STATUS = """\
Exit status: 1 where nothing will come of the job any more, otherwise 0.
"""
_RUN = """\
A row: {"prompt": "What is 2 + 2?", "custom_id": "a", "expected": "4"}
   or: {"messages": [{"role": "user", "content": "…"}], "sampling_params": {…}}
   or: {"prompt": "The sky is blue.", "kind": "score"}

Exit status: 0 every row is answered; 3 finished, but some rows ended in an
error; 1 it could not finish; 130 stopped by Ctrl-C.
"""


def _in_one_line(error: CycloptsError) -> str:
    return f"penstock: {error}"


app = App(
    name="penstock",
    help="Batch inference from Redis streams: a crash costs nothing, one bad row costs one row.",
    help_epilogue=_EXAMPLES,
    help_format="plaintext",
    version=lambda: _version(),
    error_formatter=_in_one_line,
    result_action="return_value",
    group_commands=OTHER,
)


_Server = Annotated[ServerFlags, Parameter(name="*")]
_Sampling = Annotated[SamplingFlags, Parameter(name="*")]
_Delivery = Annotated[DeliveryFlags, Parameter(name="*")]
_Reply = Annotated[ReplyFlags, Parameter(name="*")]
_Prompt = Annotated[PromptFlags, Parameter(name="*")]
_Model = Annotated[str | None, Parameter(env_var="PENSTOCK_MODEL", group=CONSUMER)]
_Port = Annotated[int | None, Parameter(group=SERVER)]
_GatewayPort = Annotated[int | None, Parameter(group=GATEWAY)]
_WithGateway = Annotated[bool, Parameter(name="--gateway", group=GATEWAY, show_default=False)]
_Passed = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
_NO_SERVER_NAMED = ServerFlags()
_NO_SAMPLING = SamplingFlags()
_WAIT = ReplyFlags()
_CHAT = PromptFlags()
_STANDARD = DeliveryFlags()

for _verbs in (dead, lanes, pause, resume, gateway, keys, webhooks):
    app.command(_verbs)


@app.command(group=TRY, help_epilogue="")
def demo(*, data: Path = Path(".penstock/demo")) -> int:
    """Answer the demo's questions with the tiny model and count the right answers.

    Parameters
    ----------
    data
        Folder for the server's data and the output.
    """
    from producer.demo import run_demo

    return run_demo(data)


@app.command(group=TRY, help_epilogue="")
def doctor(*, model: _Model = None, server: _Server = _NO_SERVER_NAMED) -> int:
    """Say what is installed, what is missing, and what each means.

    The exit status is 1 if `penstock up` with these flags can't work.

    Parameters
    ----------
    model
        A folder or a Hugging Face Hub id; by default the tiny model.
    """
    from producer.doctor import run_doctor

    return run_doctor(server.where, model)


@app.command(group=SERVE, sort_key=1, help_epilogue=_UP)
def up(
    *consumer_flags: _Passed,
    model: _Model = None,
    port: _Port = None,
    gateway: _WithGateway = True,
    gateway_port: _GatewayPort = None,
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """Run a server, a consumer and a gateway on this machine; Ctrl-C drains.

    With --redis, only consumer and gateway. Flags not listed here go to the consumer: --max-num-seqs N,
    --grace-s S and others; `python -m consumer --help` lists them.

    Parameters
    ----------
    model
        A folder or a Hugging Face Hub id; by default the tiny model.
    port
        Let the embedded server also listen on this TCP port of 127.0.0.1.
    gateway
        Serve OpenAI's API and the page as well; further settings of it by PENSTOCK_GATEWAY_….
    gateway_port
        Where; by default 8000, or the next free port.
    """
    from producer.up import run_up

    beside = settings_beside(gateway_port) if gateway else None
    return run_up(server.where, model, consumer_flags, port, gateway=beside)


@app.command(group=SERVE, sort_key=2, help_epilogue=_CONSUMER)
def consumer(*consumer_flags: _Passed, model: _Model = None, server: _Server = _NO_SERVER_NAMED) -> int:
    """Become a consumer of a server that runs; SIGTERM drains.

    Flags not listed here go to it: --name NAME, --max-num-seqs N and others; `python -m consumer --help`
    lists them.

    Parameters
    ----------
    model
        A folder or a Hugging Face Hub id; by default the tiny model.
    """
    from producer.up import become_consumer

    return become_consumer(server.where, model, consumer_flags)


@app.command(group=ASK, sort_key=1, help_epilogue=_SUBMIT)
def submit(
    prompt: str | None = None,
    /,
    *,
    about: _Prompt = _CHAT,
    delivery: _Delivery = _STANDARD,
    reply: _Reply = _WAIT,
    sampling: _Sampling = _NO_SAMPLING,
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """Send one prompt and print the answer.

    Parameters
    ----------
    prompt
        The text; read from standard input where it is left out or is `-`.
    """
    from producer.ask import make_job, run_submit

    job = make_job(prompt, {**delivery.given(), "sampling_params": sampling.given()}, about, reply)
    return run_submit(server.where, job, delivery, reply)


@app.command(group=ASK, sort_key=2, help_epilogue=_STATUS)
def status(
    job: str,
    /,
    *,
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """Say where a job is (queued, running, done, failed, expired, lost) and what it waits for.

    Parameters
    ----------
    job
        The job's id, as `submit` printed it.
    json
        Print one JSON object.
    """
    from producer.status import run_status

    return run_status(server.where, job, as_json=json)


@app.command(group=ASK, sort_key=3, help_epilogue="")
def cancel(job: str, /, *, server: _Server = _NO_SERVER_NAMED) -> int:
    """Cancel a job; it ends as failed, at once.

    Parameters
    ----------
    job
        The job's id, as `submit` printed it.
    """
    from producer.ask import run_cancel

    return run_cancel(server.where, job)


@app.command(group=ASK, sort_key=4, help_epilogue=_RUN)
def run(
    input: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    window: int = 1024,
    lane: str = DEFAULT_LANE,
    model: _Model = None,
    server: _Server = _NO_SERVER_NAMED,
) -> int:
    """Answer every row of a JSON Lines file; run again after a stop, it goes on.

    Starts an embedded server and a consumer for its own duration where no server is named and none runs.

    Parameters
    ----------
    input
        Rows with `prompt` or `messages`, any other field of a job, and `expected` to check the answer by.
    output
        Answers, one line a row, in the order in which they finish. OUTPUT.state beside it is for resuming.
    window
        Most rows in flight.
    lane
        The lane to put them in.
    model
        For the consumer that this starts: a folder or a Hugging Face Hub id; by default the tiny model.
    """
    from producer.dataset import Plan, run_dataset

    return run_dataset(Plan(input, output, window, lane), server.where, model)


def main() -> None:
    """Entry of the program `penstock`."""
    try:
        status = app(sys.argv[1:])
    except PenstockError as error:
        print(f"penstock: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    sys.exit(status)


def _version() -> str:
    from importlib.metadata import version

    return version("penstock")


if __name__ == "__main__":
    main()
