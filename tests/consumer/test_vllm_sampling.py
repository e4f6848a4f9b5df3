"""Which tokens are chosen, as vLLM documents it; on the trained tiny model.

Quotations are from the docstrings of vLLM's `SamplingParams` (docs.vllm.ai: api/vllm/sampling_params), its
page on structured outputs (features/structured_outputs) and that on reproducibility (usage/reproducibility).
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from penstock.messages import Completion, Job
from penstock.sampling import SamplingParams, StructuredOutputs
from tests.consumer.in_process import InProcess, lease_of
from tests.engine.run import run, tokens_of

JSON = "Name and age as JSON: Chen is 66 years old."
SUM = "What is 12 + 7?"
GREET = "Greet Ada."
FRANCE = "What is the capital of France?"
END = 2
DIGITS = list(range(21, 31))
HOT: dict[str, Any] = {"temperature": 3.0, "max_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def tiny() -> InProcess:
    return InProcess()


def ids(output: Completion) -> list[int]:
    assert output.token_ids is not None
    return output.token_ids


def many(tiny: InProcess, prompt: str, num: int = 12, **params: Any) -> list[Completion]:
    """One job for each of `num` seeds, in one batch."""
    jobs = [
        Job(prompt=prompt, sampling_params=SamplingParams(**{"seed": seed, **params}), return_token_ids=True)
        for seed in range(num)
    ]
    return [done.outputs[0] for done in tiny.answer(*jobs)]


def test_bad_words_are_never_generated(tiny: InProcess) -> None:
    """bad_words: "Words that are not allowed to be generated. More precisely, only the last token of a
    corresponding token sequence is not allowed when the next generated token can complete the sequence." """
    assert tiny.ask(GREET).text == "Hello, Ada!"
    cut = tiny.ask(GREET, bad_words=["Ada"]).text
    assert cut.startswith("Hello, Ad")  # the beginning of the word is allowed
    assert not cut.startswith("Hello, Ada")
    assert "Hello" not in tiny.ask(GREET, bad_words=["Hello"]).text
    both = tiny.ask(GREET, bad_words=["Hello", "Ada", "!"]).text
    assert not any(word in both for word in ("Hello", "Ada", "!"))
    free = many(tiny, GREET, temperature=1.5, max_tokens=20)
    assert any("Ada" in output.text for output in free)
    banned = many(tiny, GREET, temperature=1.5, max_tokens=20, bad_words=["Ada"])
    assert not any("Ada" in output.text for output in banned)


def test_a_bad_word_is_banned_behind_a_space_too(tiny: InProcess) -> None:
    """bad_words: vLLM's `update_from_tokenizer` means "to prohibit words both at the beginning and in the
    middle of text"."""
    biased = dict.fromkeys((442, 443), 100.0)  # the, and the same behind a space
    assert set(ids(tiny.ask(SUM, logit_bias=biased, max_tokens=3))) <= {442, 443}
    banned = ids(tiny.ask(SUM, logit_bias=biased, max_tokens=3, bad_words=["the"]))
    assert not {442, 443} & set(banned)


def test_nothing_but_allowed_ids_is_sampled(tiny: InProcess) -> None:
    """allowed_token_ids: "only retains scores for the given token ids"."""
    for output in many(tiny, SUM, allowed_token_ids=DIGITS, temperature=3.0, max_tokens=8):
        assert set(ids(output)) <= set(DIGITS)
        assert (len(ids(output)), output.finish_reason) == (8, "length")  # the end token is not allowed
    answer = tiny.ask(SUM, allowed_token_ids=[*DIGITS, END])
    assert (answer.text, answer.finish_reason) == ("19", "stop")
    assert ids(tiny.ask(GREET, allowed_token_ids=[77], max_tokens=4, temperature=1.0)) == [77] * 4


def test_a_bias_is_added_to_logits(tiny: InProcess) -> None:
    """logit_bias: "the engine will construct a logits processor that applies these logit biases"; OpenAI's
    words on its range: values like -100 or 100 should result in a ban or exclusive selection."""
    assert ids(tiny.ask(SUM, logit_bias={77: 100.0}, max_tokens=4)) == [77] * 4
    assert 77 not in {
        token for output in many(tiny, GREET, logit_bias={77: -100.0}, **HOT) for token in ids(output)
    }
    assert tiny.ask(SUM, logit_bias={77: 0.001}).text == "19"
    assert END not in ids(tiny.ask(SUM, logit_bias={END: -100.0}, max_tokens=10))


def test_zero_temperature_and_one_token_to_choose_from_are_greedy(tiny: InProcess) -> None:
    """temperature: "Zero means greedy sampling." top_k: "Controls the number of top tokens to consider.";
    top_p and min_p likewise leave the likeliest token alone at their other ends."""
    for prompt in (SUM, JSON, GREET):
        greedy = tiny.ask(prompt, temperature=0.0, max_tokens=25)
        for one in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
            assert tiny.ask(prompt, temperature=2.0, seed=3, max_tokens=25, **one) == greedy
    for everything in ({"top_k": 0}, {"top_k": -1}, {"top_k": 468}, {"top_p": 1.0}, {"min_p": 0.0}):
        assert tiny.ask(SUM, seed=5, **HOT, **everything) == tiny.ask(SUM, seed=5, **HOT)


def test_a_seed_repeats_its_output(tiny: InProcess) -> None:
    """seed: "Random seed to use for the generation." The same one gives the same, another one another."""
    first, again = many(tiny, SUM, **HOT), many(tiny, SUM, **HOT)
    assert first == again
    assert len({tuple(ids(output)) for output in first}) == len(first)


def test_a_seed_does_not_depend_on_the_batch(tiny: InProcess) -> None:
    """Batch invariance "ensures that the output of a model is deterministic and independent of the batch size
    or the order of requests in a batch": here without an option, for seeded sampling and for greedy."""
    jobs = [
        Job(prompt=prompt, sampling_params=SamplingParams(seed=seed, **HOT), return_token_ids=True)
        for seed, prompt in enumerate([SUM, JSON, GREET, FRANCE] * 6)
    ]
    together = [done.outputs for done in tiny.answer(*jobs)]
    backwards = [done.outputs for done in tiny.answer(*reversed(jobs))]
    assert backwards[::-1] == together
    for number in (0, 9, 23):
        assert tiny.answer(jobs[number])[0].outputs == together[number]


def test_without_a_seed_jobs_differ(tiny: InProcess) -> None:
    """seed: None by default, and two requests are then two draws; a job that runs again repeats its own."""
    job = Job(prompt=SUM, sampling_params=SamplingParams(**HOT), return_token_ids=True)
    first, second = (done.outputs[0] for done in tiny.answer(job, job))
    assert ids(first) != ids(second)
    assert tiny.answer(job)[0].outputs[0] == first


def test_n_outputs_are_n_draws(tiny: InProcess) -> None:
    """n: "Number of outputs to return for the given prompt request." """
    outputs = tiny.ask_all(SUM, n=5, seed=9, **HOT)
    assert [output.index for output in outputs] == list(range(5))
    assert len({tuple(ids(output)) for output in outputs}) == 5
    for n in (1, 3):
        assert tiny.ask_all(SUM, n=n, seed=9, **HOT) == outputs[:n]
    request = tiny.admit(
        lease_of(Job(prompt=SUM, sampling_params=SamplingParams(n=5, seed=9, **HOT)))
    ).running.request
    for sample, output in zip(request.samples, outputs, strict=True):
        alone = msgspec.structs.replace(request, samples=[sample])
        found = run(tiny.engine, [alone])[request.request_id]
        assert tokens_of(found, sample.index) == ids(output)


def test_greedy_outputs_are_all_the_same(tiny: InProcess) -> None:
    """n: where nothing is drawn, nothing can differ. (vLLM refuses this; OpenAI's API takes it.)"""
    outputs = tiny.ask_all(JSON, n=4, temperature=0.0)
    assert [output.text for output in outputs] == ['{"name": "Chen", "age": 66}'] * 4


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalties_of_the_output(penalty: str, tiny: InProcess) -> None:
    """presence_penalty and frequency_penalty: "Penalizes new tokens based on whether they appear in the
    generated text so far" and "based on their frequency": "Values > 0 encourage the model to use new tokens,
    while values < 0 encourage the model to repeat tokens." """

    def num_different(value: float) -> int:
        outputs = many(tiny, SUM, temperature=1.2, max_tokens=24, ignore_eos=True, **{penalty: value})
        return sum(len(set(ids(output))) for output in outputs)

    assert num_different(-2.0) < num_different(0.0) < num_different(2.0)
    # The first token has no output before it.
    assert ids(tiny.ask("Reverse: stream.", max_tokens=1, **{penalty: 2.0})) == ids(
        tiny.ask("Reverse: stream.", max_tokens=1)
    )


def test_the_frequency_penalty_grows_with_every_use(tiny: InProcess) -> None:
    """frequency_penalty: "based on their frequency in the generated text so far"; presence does not count."""
    only = {"allowed_token_ids": [77, 78], "logit_bias": {77: 100.0, 78: 85.0}, "max_tokens": 24}
    assert ids(tiny.ask(SUM, **only)) == [77] * 24
    assert ids(tiny.ask(SUM, presence_penalty=2.0, **only)) == [77] * 24
    often = ids(tiny.ask(SUM, frequency_penalty=2.0, **only))
    assert often[:3] == [77] * 3
    assert 78 in often


def test_the_repetition_penalty_counts_the_prompt(tiny: InProcess) -> None:
    """repetition_penalty: "Penalizes new tokens based on whether they appear in the prompt and the generated
    text so far. Values > 1 encourage the model to use new tokens, while values < 1 encourage the model to
    repeat tokens." """
    prompt = "Reverse: stream."
    asked = set(tiny.served.tokenizer.encode(Job(prompt=prompt), 100).token_ids)
    (letter,) = ids(tiny.ask(prompt, max_tokens=1))
    assert letter in asked
    new = ids(tiny.ask(prompt, repetition_penalty=50.0, max_tokens=12, ignore_eos=True))
    assert not asked & set(new)
    assert len(set(new)) == len(new)

    def num_new(penalty: float) -> int:
        outputs = many(
            tiny, prompt, repetition_penalty=penalty, temperature=1.5, ignore_eos=True, max_tokens=20
        )
        return sum(len(set(ids(output)) - asked) for output in outputs)

    assert num_new(0.7) < num_new(1.0) < num_new(1.5)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}
LARK = 'start: word ("-" word)~1..2\nword: /[a-c]{1,2}/'


def test_structured_outputs_have_their_form(tiny: InProcess) -> None:
    """ "choice: the output will be exactly one of the choices. regex: the output will follow the regex
    pattern. json: the output will follow the JSON schema. grammar: the output will follow the context free
    grammar." However hot the sampling is, and with other forms in the same batch."""
    forms = [
        StructuredOutputs(choice=["Paris", "Rome", "New York"]),
        StructuredOutputs(regex=r"[0-9]{3}-[a-f]{2,4}"),
        StructuredOutputs(json=SCHEMA),
        StructuredOutputs(grammar=LARK),
    ]
    jobs = [
        Job(
            prompt=FRANCE, sampling_params=SamplingParams(structured_outputs=form, temperature=2.0, seed=seed)
        )
        for seed in range(6)
        for form in forms
    ]
    texts = [done.text for done in tiny.answer(*jobs)]
    for done in tiny.answer(*jobs):
        assert done.outputs[0].finish_reason == "stop"
    assert set(texts[0::4]) <= {"Paris", "Rome", "New York"}
    assert all(re.fullmatch(r"[0-9]{3}-[a-f]{2,4}", text) for text in texts[1::4]), texts[1::4]
    for text in texts[2::4]:
        value = json.loads(text)
        assert sorted(value) == ["name", "ok"]
        assert len(value["name"]) <= 6
        assert isinstance(value["ok"], bool)
    assert all(re.fullmatch(r"[a-c]{1,2}(-[a-c]{1,2}){1,2}", text) for text in texts[3::4]), texts[3::4]
    assert min(len(set(texts[kind::4])) for kind in (1, 2, 3)) > 1


def test_a_form_that_the_model_would_have_chosen_changes_nothing(tiny: InProcess) -> None:
    """json_object: any JSON object; greedy choices that fit a form are the same with it."""
    free = tiny.ask(JSON)
    assert tiny.ask(JSON, structured_outputs=StructuredOutputs(json_object=True)).text == free.text
    assert tiny.ask(FRANCE, structured_outputs=StructuredOutputs(choice=["Rome", "Paris"])).text == "Paris"
    assert tiny.ask(FRANCE, structured_outputs=StructuredOutputs(json_object=True)).text.startswith("{")


@pytest.mark.parametrize(
    "wishes",
    [
        {"ignore_eos": True},
        {"min_tokens": 20, "bad_words": ["1"]},
        {"min_tokens": 20, "stop_token_ids": [22]},
    ],
)
def test_the_end_of_a_form_is_no_part_of_it(wishes: dict[str, Any], tiny: InProcess) -> None:
    """choice: "the output will be exactly one of the choices", also where special tokens are shown and the
    end token comes because nothing else may, against `min_tokens` or `ignore_eos`."""
    form = StructuredOutputs(choice=["Paris", "Paris1"])
    answer = tiny.ask(FRANCE, structured_outputs=form, skip_special_tokens=False, **wishes)
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("Paris", "stop", None)
    assert ids(answer)[-1] == END
