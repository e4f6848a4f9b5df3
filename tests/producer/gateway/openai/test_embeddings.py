"""Embeddings by OpenAI's client."""

from __future__ import annotations

import math

import openai
import pytest
from openai.types import CreateEmbeddingResponse

from penstock.messages import Done, Usage
from producer.gateway.openai.embedding_reply import embeddings
from producer.gateway.openai.form import EmbeddingForm
from tests.producer.gateway.openai.talking import MODEL, Talk, strictly


async def test_vectors_as_the_client_asks_for_them(talk: Talk) -> None:
    found = await talk.openai.embeddings.create(model=MODEL, input=["ab", "c"])  # base64 on the wire
    assert [(one.index, one.embedding) for one in found.data] == [(0, [2.0, 0.5]), (1, [1.0, 0.5])]
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (3, 3)
    plain = await talk.http.post(
        "/v1/embeddings", json={"model": MODEL, "input": [97, 98, 99], "encoding_format": "float"}
    )
    assert strictly(CreateEmbeddingResponse, plain.content).data[0].embedding == [3.0, 0.5]


async def test_fewer_dimensions_are_the_first_ones_scaled_again(talk: Talk) -> None:
    found = await talk.openai.embeddings.create(model=MODEL, input="ab", dimensions=1)
    assert found.data[0].embedding == [1.0]
    with pytest.raises(openai.BadRequestError) as many:
        await talk.openai.embeddings.create(model=MODEL, input="ab", dimensions=3)
    assert many.value.param == "dimensions"


@pytest.mark.parametrize("given", ["", [], ["a", ""], [["a"]], ["a", 1]])
async def test_inputs_that_are_none(talk: Talk, given: object) -> None:
    reply = await talk.http.post("/v1/embeddings", json={"model": MODEL, "input": given})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("input")


def test_a_cut_vector_has_length_one() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=0)
    done = Done(outputs=[], usage=usage, model=MODEL, embedding=[0.6, 0.0, 0.8, 0.0])
    (one,) = embeddings(EmbeddingForm(dimensions=2), [("standard.1-0", done)]).data
    assert math.hypot(*(value for value in one.embedding if isinstance(value, float))) == 1.0
