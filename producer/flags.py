"""Flags that several verbs share, or that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter

from penstock.keys import DEFAULT_LANE, check_idempotency_key, check_lane
from producer.errors import UsageError
from producer.where import Where

if TYPE_CHECKING:
    from penstock.messages import StructuredOutputs

SERVE: Final = Group("Serve", sort_key=1)
DELIVERY: Final = Group("Delivery", sort_key=10)
SERVER: Final = Group("Server", sort_key=11)
SAMPLING: Final = Group("Sampling (what is not given is the model's own default)", sort_key=12)


@Parameter(name="*", group=SERVER)
@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """Which server."""

    redis: Annotated[str | None, Parameter(env_var="PENSTOCK_REDIS")] = None
    """URL of a Redis or Valkey; by default penstock's own, embedded one."""
    data: Annotated[str | None, Parameter(env_var="PENSTOCK_DATA")] = None
    """Data folder of the embedded server; by default ~/.local/share/penstock."""

    @property
    def where(self) -> Where:
        """As the rest of the package takes it; an empty variable, as compose files make them, is none."""
        return Where(self.redis or None, Path(self.data) if self.data else None)


@Parameter(name="*", group=SAMPLING)
@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen."""

    max_tokens: int | None = None
    """Most tokens to generate."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this mass."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    min_p: float | None = None
    """Drop tokens less likely than this fraction of the likeliest."""
    seed: int | None = None
    """The same seed gives the same draws."""
    stop: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    """End before this text; may be given several times."""
    n: int | None = None
    """Outputs to generate."""
    min_tokens: int | None = None
    """Generate at least so many tokens."""
    presence_penalty: float | None = None
    """Make tokens that are in the output less likely."""
    frequency_penalty: float | None = None
    """The same, the more the oftener they are in it."""
    repetition_penalty: float | None = None
    """Make tokens of prompt and output less likely, above 1."""
    logprobs: int | None = None
    """Log-probabilities of each token and of so many likeliest ones; seen with --json."""
    json_schema: str | None = None
    """The output is JSON of this schema: a file, or the schema itself."""
    regex: str | None = None
    """The output matches this regular expression."""
    choice: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    """The output is one of these; given once for each."""
    params: str | None = None
    """Further sampling parameters: a JSON object, or a file of one; a flag of the same name wins."""

    def given(self) -> dict[str, Any]:
        """Fields of SamplingParams that were set, not checked.

        Raises:
            UsageError: the schema, or `params`, can't be read.
            InvalidJob: the output is to have more than one form.
        """
        elsewhere = {"json_schema", "regex", "choice", "params"}
        values = {name: value for name, value in vars(self).items() if name not in elsewhere}
        values |= {"stop": list(self.stop) or None, "structured_outputs": self._form()}
        params = {} if self.params is None else read_object("--params", self.params)
        return params | {name: value for name, value in values.items() if value is not None}

    def _form(self) -> StructuredOutputs | None:
        schema = None if self.json_schema is None else read_object("--json-schema", self.json_schema)
        values: dict[str, Any] = {"json": schema, "regex": self.regex, "choice": list(self.choice) or None}
        given = {name: value for name, value in values.items() if value is not None}
        if not given:
            return None
        from penstock.messages import StructuredOutputs

        return StructuredOutputs(**given)


@dataclass(frozen=True, kw_only=True)
class PromptFlags:
    """What the text is, and what is wanted of it."""

    chat: Annotated[bool, Parameter(name="--chat", negative="--raw", show_default=False)] = True
    """Send the text as a user's message, rendered by the model's chat template; --raw sends it as it is."""
    kind: Literal["generate", "score", "embed"] = "generate"
    """What is wanted of it: a continuation, its log-likelihood, or a vector."""
    fields: str | None = None
    """Further fields of the job, see docs/wire.md: a JSON object, or a file of one."""


@Parameter(name="*", group=DELIVERY)
@dataclass(frozen=True, kw_only=True)
class DeliveryFlags:
    """How a job is queued and tried."""

    lane: str = DEFAULT_LANE
    """The lane to put it in."""
    idempotency_key: str | None = None
    """Enqueue nothing where a job was enqueued under this key within a day: that job is followed instead."""
    deadline: float | None = None
    """Seconds after which the job fails if it has not ended."""
    max_attempts: int | None = None
    """How often it may fail before it is a dead letter; by default 3."""

    def check(self) -> None:
        """Refuse what no server need be asked about.

        Raises:
            UsageError: the lane or the key is not one.
        """
        try:
            check_lane(self.lane)
            if self.idempotency_key is not None:
                check_idempotency_key(self.idempotency_key)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def given(self) -> dict[str, Any]:
        """Fields of Job that were set, not checked."""
        values = {"deadline_s": self.deadline, "max_attempts": self.max_attempts}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ReplyFlags:
    """How an answer is waited for and printed."""

    stream: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Print the text as it comes."""
    wait: Annotated[bool, Parameter(name="--wait", negative="--no-wait", show_default=False)] = True
    """Wait for the answer; with --no-wait, print the job's id and return."""
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Print events as JSON instead of text."""
    timeout: float | None = None
    """Seconds to wait for the answer; the job goes on after that."""


def read_object(flag: str, text: str) -> dict[str, Any]:
    """The JSON object that a flag gives, itself or in a file.

    Raises:
        UsageError: there is none.
    """
    import msgspec

    inline = text.lstrip().startswith("{")
    try:
        return msgspec.json.decode(text if inline else Path(text).read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UsageError(f"{flag}: {text} can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        where = "it" if inline else text
        raise UsageError(f"{flag}: {where} is not a JSON object: {error}") from None
