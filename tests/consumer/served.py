"""A model that admission and running jobs can be tried on, without an engine or a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consumer.defaults import Defaults
from consumer.lease import Lease
from consumer.served import Served
from consumer.token_logprobs import TokenTexts
from consumer.tokenizer import PromptTokenizer
from engine.messages import Ready
from penstock.keys import JobId
from penstock.messages import Job, encode_job
from tests.consumer.models import EOS

WINDOW = 40
VOCAB_SIZE = 300


def make_served(folder: Path, **defaults: Any) -> Served:
    """The model in the folder, with a window of 40 tokens."""
    ready = Ready(
        model="m",
        model_path=str(folder),
        fingerprint="f",
        max_model_len=WINDOW,
        vocab_size=VOCAB_SIZE,
        max_num_seqs=4,
        num_blocks=10,
        block_size=16,
        eos_token_ids=[EOS],
    )
    tokenizer = PromptTokenizer(folder, ready.vocab_size)
    return Served(
        model="m",
        ready=ready,
        tokenizer=tokenizer,
        token_texts=TokenTexts(tokenizer.tokenizer),
        defaults=Defaults(**defaults),
        result_ttl_s=60,
    )


def make_lease(job: Job, deliveries: int = 1) -> Lease:
    """A lease of the job."""
    job_id = JobId("standard", "1-0", None)
    return Lease(job_id=job_id, key=str(job_id), deliveries=deliveries, job=encode_job(job))
