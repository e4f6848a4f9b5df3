"""Where an output ends, and what of the end is in it, as vLLM documents it; on the trained tiny model.

Quotations are from the docstrings of vLLM's `SamplingParams`, `RepetitionDetectionParams` and
`CompletionOutput` (docs.vllm.ai: api/vllm/sampling_params, api/vllm/outputs).
"""

from __future__ import annotations

import pytest

from penstock.messages import Job, Tokens, decode_event
from penstock.sampling import RepetitionDetection, SamplingParams, StructuredOutputs
from tests.consumer.in_process import InProcess, lease_of

JSON = "Name and age as JSON: Chen is 66 years old."
ANSWER = '{"name": "Chen", "age": 66}'
# {, ", name, ", :, space, ", C, h, e, n, ", comma, space, ", age, ", :, space, 6, 6, }, <|end|>
SUM = "What is 12 + 7?"
END, ONE, NINE, LETTER_N = 2, 22, 30, 83


@pytest.fixture(scope="module")
def tiny() -> InProcess:
    return InProcess()


@pytest.fixture(scope="module")
def whole(tiny: InProcess) -> list[int]:
    """The answer's tokens, where nothing ends it early."""
    token_ids = tiny.ask(JSON).token_ids
    assert token_ids is not None
    return token_ids


def test_the_end_token_ends_the_output_and_is_no_reason(tiny: InProcess) -> None:
    """stop_reason: "The stop string or token id that caused the completion to stop, None if the completion
    finished for some other reason including encountering the EOS token." """
    answer = tiny.ask(SUM)
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("19", "stop", None)
    assert answer.token_ids == [ONE, NINE, END]
    named = tiny.ask(SUM, stop_token_ids=[END])
    assert named == answer


def test_a_stop_string_ends_the_output(tiny: InProcess, whole: list[int]) -> None:
    """stop: "String(s) that stop the generation when they are generated. The returned output will not
    contain the stop strings." The tokens that it is made of count as generated."""
    for stop in ("Chen", ["Chen"], ["zzz", "Chen", "Paris"]):
        answer = tiny.ask(JSON, stop=stop)
        assert (answer.text, answer.finish_reason, answer.stop_reason) == ('{"name": "', "stop", "Chen")
        assert answer.token_ids == whole[:11]


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [
        ('me": "Ch', '{"na', 9),  # from the middle of a token, over five, to the end of another
        ("ag", '{"name": "Chen", "', 16),  # a token's beginning
        ("am", '{"n', 3),  # a token's middle
        ("{", "", 1),
        ("}", '{"name": "Chen", "age": 66', 22),
    ],
)
def test_stop_strings_know_no_borders_of_tokens(
    stop: str, text: str, num_tokens: int, tiny: InProcess, whole: list[int]
) -> None:
    """stop: they "stop the generation when they are generated", however many tokens they are spread over."""
    answer = tiny.ask(JSON, stop=stop)
    assert (answer.text, answer.stop_reason, answer.token_ids) == (text, stop, whole[:num_tokens])
    answer = tiny.ask(JSON, stop=stop, include_stop_str_in_output=True)
    assert (answer.text, answer.stop_reason, answer.token_ids) == (text + stop, stop, whole[:num_tokens])


def test_the_stop_string_that_is_generated_first_wins(tiny: InProcess) -> None:
    """stop: "String(s) that stop the generation when they are generated": not in the list's order, and not
    the one that merely begins first."""
    assert tiny.ask(JSON, stop=["66", '"age"', "Chen", "}"]).stop_reason == "Chen"
    answer = tiny.ask(JSON, stop=['Chen", "age": 66', "en"])
    assert (answer.text, answer.stop_reason) == ('{"name": "Ch', "en")
    both = tiny.ask(JSON, stop=["hen", "Chen"])  # completed by the same token: the text ends before both
    assert (both.text, both.stop_reason) == ('{"name": "', "Chen")


def test_what_the_prompt_has_stops_nothing(tiny: InProcess) -> None:
    """stop: they count "when they are generated"; the prompt has all of these."""
    assert tiny.ask(JSON, stop=["JSON", "years old.", "as "]).text == ANSWER
    assert tiny.ask(JSON, stop=["old.{"]).text == ANSWER


def test_a_stop_string_may_be_included(tiny: InProcess, whole: list[int]) -> None:
    """include_stop_str_in_output: "Whether to include the stop strings in output text." """
    answer = tiny.ask(JSON, stop=["Chen"], include_stop_str_in_output=True)
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ('{"name": "Chen', "stop", "Chen")
    assert answer.token_ids == whole[:11]


def test_streamed_text_never_has_a_part_of_a_stop_string(tiny: InProcess) -> None:
    """stop: "The returned output will not contain the stop strings", which holds for each part of it that
    is streamed: nothing is taken back."""
    job = Job(prompt=JSON, sampling_params=SamplingParams(stop=['", "age": 66}']), stream=True)
    run = tiny.admit(lease_of(job))
    tiny.drive([run])
    streamed = ""
    for _, data in run.events:
        event = decode_event(data)
        assert isinstance(event, Tokens)
        streamed += event.text
        assert '{"name": "Chen'.startswith(streamed)
    assert streamed == '{"name": "Chen'


def test_a_stop_token_ends_the_output(tiny: InProcess, whole: list[int]) -> None:
    """stop_token_ids: "Token IDs that stop the generation when they are generated. The returned output will
    contain the stop tokens unless the stop tokens are special tokens." The text has it only where
    include_stop_str_in_output asks for it, as in vLLM since #14624; the token ids have it always."""
    answer = tiny.ask(JSON, stop_token_ids=[400, LETTER_N])
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ('{"name": "Che', "stop", LETTER_N)
    assert answer.token_ids == whole[:11]
    answer = tiny.ask(JSON, stop_token_ids=[LETTER_N], include_stop_str_in_output=True)
    assert (answer.text, answer.stop_reason) == ('{"name": "Chen', LETTER_N)
    assert answer.token_ids == whole[:11]


def test_a_stop_token_may_cut_a_structured_output(tiny: InProcess) -> None:
    """stop_token_ids "stop the generation when they are generated": what was asked for cannot be whole then,
    and the stop reason says so."""
    form = StructuredOutputs(choice=["Chen", "Paris"])
    answer = tiny.ask(JSON, structured_outputs=form, stop_token_ids=[LETTER_N])
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("Che", "stop", LETTER_N)


def test_the_end_token_may_be_ignored(tiny: InProcess) -> None:
    """ignore_eos: "Whether to ignore the EOS token and continue generating tokens after the EOS token is
    generated." """
    answer = tiny.ask(SUM, ignore_eos=True, max_tokens=9)
    assert answer.token_ids is not None
    assert answer.token_ids[:3] == [ONE, NINE, END]
    assert (len(answer.token_ids), answer.finish_reason, answer.stop_reason) == (9, "length", None)
    named = tiny.ask(SUM, ignore_eos=True, stop_token_ids=[END], max_tokens=9)
    assert (named.token_ids, named.finish_reason, named.stop_reason) == ([ONE, NINE, END], "stop", END)


def test_max_tokens_is_the_most(tiny: InProcess, whole: list[int]) -> None:
    """max_tokens: "Maximum number of tokens to generate per output sequence." """
    for max_tokens in (1, 5, len(whole) - 1):
        answer = tiny.ask(JSON, max_tokens=max_tokens)
        assert (answer.finish_reason, answer.stop_reason) == ("length", None)
        assert answer.token_ids == whole[:max_tokens]
        assert ANSWER.startswith(answer.text)
    exact = tiny.ask(JSON, max_tokens=len(whole))
    assert (exact.finish_reason, exact.text) == ("stop", ANSWER)


def test_min_tokens_puts_off_the_end_token(tiny: InProcess) -> None:
    """min_tokens: "Minimum number of tokens to generate per output sequence before EOS or `stop_token_ids`
    can be generated"."""
    assert tiny.ask(SUM, min_tokens=2).token_ids == [ONE, NINE, END]
    for min_tokens in (3, 12):
        answer = tiny.ask(SUM, min_tokens=min_tokens)
        assert answer.token_ids is not None
        assert answer.token_ids[:2] == [ONE, NINE]
        assert END not in answer.token_ids[:min_tokens]
        assert len(answer.token_ids) > min_tokens
        ignoring = tiny.ask(SUM, min_tokens=min_tokens, ignore_eos=True, max_tokens=20)
        assert ignoring.token_ids is not None
        assert END not in ignoring.token_ids[:min_tokens]
        assert len(ignoring.token_ids) == 20


def test_min_tokens_puts_off_stop_tokens(tiny: InProcess, whole: list[int]) -> None:
    """min_tokens: before it no `stop_token_ids` "can be generated"."""
    answer = tiny.ask(JSON, stop_token_ids=[LETTER_N], min_tokens=10)
    assert answer.token_ids == whole[:11]  # ten tokens, and then the stop token may come
    answer = tiny.ask(JSON, stop_token_ids=[LETTER_N], min_tokens=11)
    assert answer.token_ids is not None
    assert answer.token_ids[:10] == whole[:10]
    assert LETTER_N not in answer.token_ids[:11]


def test_min_tokens_puts_off_stop_strings(tiny: InProcess, whole: list[int]) -> None:
    """min_tokens, for stop strings as vLLM's detokenizer has it since #22014: text of the first `min_tokens`
    tokens is not searched, and what it had there does not stop the generation later."""
    answer = tiny.ask(JSON, stop=['"'], min_tokens=7)
    assert (answer.text, answer.token_ids) == ('{"name": "Chen', whole[:12])
    answer = tiny.ask(JSON, stop=["Chen"], min_tokens=10)  # begins before, ends behind
    assert (answer.text, answer.stop_reason) == ('{"name": "', "Chen")
    answer = tiny.ask(JSON, stop=["Chen"], min_tokens=11)
    assert (answer.text, answer.stop_reason) == (ANSWER, None)


def test_special_tokens_are_skipped_or_shown(tiny: InProcess) -> None:
    """skip_special_tokens: "Whether to skip special tokens in the output." """
    kept = {"ignore_eos": True, "max_tokens": 4}
    assert tiny.ask(SUM, **kept).text == "19"
    assert tiny.ask(SUM, skip_special_tokens=False, **kept).text == "19<|end|><|end|>"
    assert tiny.ask(SUM, skip_special_tokens=False).text == "19"
    shown = tiny.ask(SUM, skip_special_tokens=False, include_stop_str_in_output=True)
    assert shown.text == "19<|end|>"


def test_repetition_ends_the_output(tiny: InProcess) -> None:
    """min_count: "Minimum number of times an N-gram pattern must repeat to trigger detection";
    min_pattern_size and max_pattern_size are the sizes that are looked for."""
    free = tiny.ask(SUM, ignore_eos=True, max_tokens=12)
    assert free.token_ids == [ONE, NINE, *[END] * 10]
    for count in (2, 4):
        detection = RepetitionDetection(max_pattern_size=1, min_count=count)
        answer = tiny.ask(SUM, ignore_eos=True, max_tokens=12, repetition_detection=detection)
        assert (answer.token_ids, answer.finish_reason) == ([ONE, NINE, *[END] * count], "repetition")
        assert answer.stop_reason == "repetition_detected"
    pairs = RepetitionDetection(min_pattern_size=2, max_pattern_size=3, min_count=2)
    answer = tiny.ask(SUM, ignore_eos=True, max_tokens=12, repetition_detection=pairs)
    assert (answer.token_ids, answer.finish_reason) == ([ONE, NINE, *[END] * 4], "repetition")
    never = RepetitionDetection(max_pattern_size=1, min_count=11)
    answer = tiny.ask(SUM, ignore_eos=True, max_tokens=12, repetition_detection=never)
    assert answer.finish_reason == "length"


def test_every_sample_ends_by_itself(tiny: InProcess) -> None:
    """finish_reason and stop_reason are each `CompletionOutput`'s own."""
    job = Job(
        prompt=JSON, sampling_params=SamplingParams(n=6, temperature=3.0, seed=4, stop=["6"], max_tokens=12)
    )
    (done,) = tiny.answer(job)
    assert [output.index for output in done.outputs] == list(range(6))
    assert len({output.finish_reason for output in done.outputs}) > 1
    for output in done.outputs:
        assert "6" not in output.text
        assert (output.stop_reason == "6") <= (output.finish_reason == "stop")
