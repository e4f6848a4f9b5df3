"""The model that a consumer serves, as admission and running jobs need it."""

from __future__ import annotations

from msgspec import Struct

from consumer.defaults import Defaults
from consumer.markers import OutputMarkers
from consumer.token_logprobs import TokenTexts
from consumer.tokenizer import PromptTokenizer
from engine.messages import Ready
from penstock.messages import Job


class Served(Struct, frozen=True, kw_only=True):
    """The model that this consumer serves, and what its consumer is set to do for jobs."""

    model: str
    """Its name to clients."""
    ready: Ready
    tokenizer: PromptTokenizer
    token_texts: TokenTexts
    defaults: Defaults
    markers: OutputMarkers = OutputMarkers()
    result_ttl_s: int
    max_attempts: int = 3
    checkpoint_tokens: int = 128
    checkpoint_s: float = 2.0

    def attempts(self, job: Job | None) -> int:
        """How often this job may fail in a way that is worth another try."""
        wanted = job.max_attempts if job is not None else None
        return wanted or self.max_attempts

    def ttl_ms(self, job: Job | None) -> int:
        """How long this job's result is kept."""
        wanted = job.result_ttl_s if job is not None else None
        return (wanted or self.result_ttl_s) * 1000
