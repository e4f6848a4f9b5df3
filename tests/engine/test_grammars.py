"""Grammars, constraints and masks, over the tiny model's tokenizer unless a test needs another."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from engine import grammars as grammars_module
from engine.constraint import ConstraintViolated
from engine.grammars import GrammarConstraint, Grammars, InvalidGrammar
from engine.masks import NUM_BUFFERS, Masks
from engine.request import Grammar, GrammarKind

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny"
VOCAB_SIZE = 500
"""More than the tokenizer's 468: the rest is padding."""
EOS = 2
OTHER_EOS = 5
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))

Compile = Callable[[GrammarKind, str], GrammarConstraint]


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(TINY, VOCAB_SIZE, [EOS, OTHER_EOS])
    yield grammars
    grammars.close()


@pytest.fixture
def compiled(grammars: Grammars) -> Compile:
    return lambda kind, text: grammars.compile(Grammar(kind=kind, text=text)).result()


@pytest.fixture(params=[1, 2])
def masks(request: pytest.FixtureRequest) -> Iterator[Masks]:
    masks = Masks(VOCAB_SIZE, [EOS, OTHER_EOS], num_threads=request.param)
    yield masks
    masks.close()


def ids(text: str) -> list[int]:
    """One token per byte."""
    alphabet = {TOKENIZER.decode([i]): i for i in range(6, 262)}
    found = [alphabet.get(char) for char in text]
    return [i if i is not None else pytest.fail(f"no token for {text!r}") for i in found]


def allowed(masks: Masks, constraint: GrammarConstraint) -> set[int]:
    filled = masks.start([constraint]).wait()
    assert not filled.failures
    return set(np.flatnonzero(np.unpackbits(filled.bits[0].view(np.uint8), bitorder="little")).tolist())


def follow(constraint: GrammarConstraint, text: str) -> bool:
    complete = False
    for token_id in ids(text):
        complete = constraint.accept(token_id)
    return complete


def matches(compiled: Compile, kind: GrammarKind, grammar: str, text: str) -> bool:
    """Whether an end token may follow the whole text."""
    constraint = compiled(kind, grammar)
    try:
        follow(constraint, text)
    except ConstraintViolated:
        return False
    return constraint.matcher.is_accepting()


def test_a_choice_may_end_before_a_longer_one(compiled: Compile, masks: Masks) -> None:
    constraint = compiled("regex", "a|ab|b")
    assert allowed(masks, constraint) == set(ids("ab"))
    assert not constraint.accept(*ids("a"))
    assert allowed(masks, constraint) == {EOS, OTHER_EOS, *ids("b")}
    assert constraint.accept(*ids("b"))
    assert allowed(masks, constraint) == {EOS, OTHER_EOS}


@pytest.mark.parametrize("eos", [EOS, OTHER_EOS])
def test_every_end_token_of_the_model_ends_a_complete_output(compiled: Compile, eos: int) -> None:
    constraint = compiled("regex", "a+")
    follow(constraint, "aa")
    assert constraint.fork().accept(eos)
    with pytest.raises(ConstraintViolated):
        compiled("regex", "a+").accept(eos)


@pytest.mark.parametrize(
    ("regex", "text", "matched"),
    [
        ("b", "abc", False),
        ("b", "b", True),
        ("^b$", "b", True),
        ("^a|b$", "a", True),
        (r"\d{2,3}", "12", True),
        (r"\d{2,3}", "1234", False),
        ("(?i)yes", "YeS", True),
        ("a/b", "a/b", True),
        (r'"\\n"', r'"\n"', True),
        ("[^a]", "\n", True),
        (".", "\n", False),
    ],
)
def test_a_regex_matches_the_whole_output(compiled: Compile, regex: str, text: str, matched: bool) -> None:
    assert matches(compiled, "regex", regex, text) == matched


def test_a_lark_grammar(compiled: Compile) -> None:
    lark = 'start: sum\nsum: product ("+" product)*\nproduct: NUMBER ("*" NUMBER)*\nNUMBER: /[0-9]+/'
    assert matches(compiled, "lark", lark, "1+2*30")
    assert not matches(compiled, "lark", lark, "1+")


def test_characters_of_several_tokens_come_whole(compiled: Compile, masks: Masks) -> None:
    constraint = compiled("regex", "[äöü]日")
    allowed_first = allowed(masks, constraint)
    assert len(allowed_first) == 1  # the byte 0xC3
    pushed: list[int] = []
    complete = False
    while not complete:
        pushed.append(max(allowed(masks, constraint)))
        complete = constraint.accept(pushed[-1])
    assert TOKENIZER.decode(pushed)[0] in "äöü"
    assert TOKENIZER.decode(pushed)[1:] == "日"


def test_padding_and_special_tokens_are_never_allowed(compiled: Compile, masks: Masks) -> None:
    constraint = compiled("regex", "(?s).*")
    found = allowed(masks, constraint)
    assert max(found) < TOKENIZER.get_vocab_size()
    assert found & set(range(6)) == {EOS, OTHER_EOS}


def test_rows_of_one_batch_are_independent(compiled: Compile, masks: Masks) -> None:
    first, second = compiled("regex", "a|b"), compiled("json_schema", '{"type":"null"}')
    filled = masks.start([None, first, None, second]).wait()
    assert filled.index.tolist() == [1, 3]
    bits = np.unpackbits(filled.bits.view(np.uint8), axis=1, bitorder="little")
    assert set(np.flatnonzero(bits[0])) == set(ids("ab"))
    assert set(np.flatnonzero(bits[1])) == set(ids("n"))
    assert masks.start([None, None]).wait().bits.shape == (0, -(-VOCAB_SIZE // 32))


def test_masks_outlive_the_next_ones(compiled: Compile, masks: Masks) -> None:
    first = masks.start([compiled("regex", "a")]).wait()
    before = first.bits.copy()
    for _ in range(NUM_BUFFERS - 1):
        masks.start([compiled("regex", "[^a]")]).wait()
    assert (first.bits == before).all()


def test_a_fork_goes_its_own_way(compiled: Compile, masks: Masks) -> None:
    constraint = compiled("regex", "a(b|c)d?")
    follow(constraint, "a")
    fork = constraint.fork()
    follow(constraint, "b")
    assert allowed(masks, fork) == set(ids("bc"))
    assert allowed(masks, constraint) == {EOS, OTHER_EOS, *ids("d")}


def test_replayed_tokens_lead_to_the_same_masks(compiled: Compile, masks: Masks) -> None:
    schema = (
        '{"type":"object","properties":{"a":{"type":"array","items":{"type":"integer"}}},"required":["a"]}'
    )
    original = compiled("json_schema", schema)
    text = '{"a": [1, 23'
    for token_id in ids(text):
        original.accept(token_id)
        masks.start([original]).wait()
    again = compiled("json_schema", schema)
    follow(again, text)
    assert allowed(masks, again) == allowed(masks, original)


def test_a_token_that_does_not_fit_is_told(compiled: Compile) -> None:
    constraint = compiled("regex", "ab")
    with pytest.raises(ConstraintViolated, match="does not fit the grammar"):
        constraint.accept(*ids("b"))


def test_a_row_without_a_mask_allows_nothing(compiled: Compile, masks: Masks) -> None:
    broken, whole = compiled("regex", "ab"), compiled("regex", "ab")
    with pytest.raises(ConstraintViolated):
        broken.accept(*ids("b"))
    filled = masks.start([broken, whole]).wait()
    assert not filled.bits[0].any()
    assert filled.bits[1].any()
    assert set(filled.failures) == {0}


def test_an_end_token_waits_for_the_end_of_the_grammar(compiled: Compile, masks: Masks) -> None:
    constraint = compiled("lark", 'start: "a" (<|end|> | "b") "c"')
    follow(constraint, "a")
    assert allowed(masks, constraint) == set(ids("b"))
    only = compiled("lark", 'start: "a" <|end|> "b"')
    follow(only, "a")
    filled = masks.start([only]).wait()
    assert not filled.bits.any()
    assert "end token" in filled.failures[0]


def test_json_bounds_white_space(compiled: Compile) -> None:
    assert matches(compiled, "json_schema", '{"type":"object"}', "{" + " \n\t\r" * 16 + "}")
    assert not matches(compiled, "json_schema", '{"type":"object"}', "{" + " " * 65 + "}")


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", "{{", "cannot be read"),
        ("json_schema", "false", "cannot be read"),
        ("json_schema", "[" * 5000 + "]" * 5000, "recursion limit"),
        ("json_schema", '{"type":"object","properties":{"a":{"type":"strin"}}}', "Invalid type: strin"),
        ("json_schema", '{"x-guidance":{"nonsense":1}}', "nonsense"),
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"\bword\b", "not supported"),
        ("regex", "x" * 300_000, "at most 262144"),
        ("lark", "start: foo", 'unknown name: "foo"'),
        ("lark", "", "Empty grammar"),
        ("lark", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "too deeply nested"),
        ("lark", 'start: A\nA: "x" A | "y"', "circular reference"),
        ("lark", "start: a\na: a", "no output matches"),
    ],
)
def test_the_compilers_words(compiled: Compile, kind: GrammarKind, text: str, words: str) -> None:
    with pytest.raises(InvalidGrammar) as refusal:
        compiled(kind, text)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 1200


def test_long_chains_of_rules_do_not_exhaust_the_stack(compiled: Compile, masks: Masks) -> None:
    # Each of these ends the process where the compiler's thread has the usual 8 MiB.
    rules = [f"a{i}: a{i + 1}" for i in range(15_000)]
    constraint = compiled("lark", "start: a0\n" + "\n".join(rules) + '\na15000: "x"')
    assert allowed(masks, constraint) == set(ids("x"))
    chain = {f"{i:x}": {"type": "array", "items": {"$ref": f"#/$defs/{i + 1:x}"}} for i in range(4000)}
    schema = {"$defs": {**chain, f"{4000:x}": {"type": "null"}}, "$ref": "#/$defs/0"}
    assert ids("[")[0] in allowed(masks, compiled("json_schema", json.dumps(schema)))


def test_an_ambiguous_grammar_ends_its_own_output_only(compiled: Compile, masks: Masks) -> None:
    ambiguous, other = (
        compiled("lark", 'start: "a" | start start | start start start'),
        compiled("regex", "a*"),
    )
    violated = False
    for _ in range(400):
        filled = masks.start([ambiguous, other]).wait()
        assert filled.bits[1].any()
        assert not other.accept(*ids("a"))
        try:
            violated = 0 in filled.failures or ambiguous.accept(*ids("a"))
        except ConstraintViolated as error:
            violated = "max is 500" in str(error)
        if violated:
            break
    assert violated


def test_a_grammar_is_compiled_once(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    source = grammars_module.source_of

    def counting(grammar: Grammar) -> str:
        compiled.append(grammar.text)
        return source(grammar)

    monkeypatch.setattr(grammars_module, "source_of", counting)
    monkeypatch.setattr(grammars_module, "MAX_KEPT_GRAMMARS", 2)

    def compile_all(texts: Sequence[str]) -> list[Future[GrammarConstraint]]:
        futures = [grammars.compile(Grammar(kind="regex", text=text)) for text in texts]
        for future in futures:
            future.result()
        return futures

    futures = compile_all(["a"] * 50)
    assert len(compiled) == 1
    assert len({id(future.result().matcher) for future in futures}) == 50
    compile_all(["b", "a", "c", "a"])  # c is one too many, and b the one longest unused
    assert len(compiled) == 3
    compile_all(["b"])
    assert len(compiled) == 4


def test_what_nobody_waits_for_any_more_is_not_compiled(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, compiled = threading.Barrier(3), threading.Event(), list[str]()
    original = grammars_module.source_of

    def slowly(grammar: Grammar) -> str:
        compiled.append(grammar.text)
        if grammar.text.startswith("slow"):
            begun.wait()
            go_on.wait()
        return original(grammar)

    monkeypatch.setattr(grammars_module, "source_of", slowly)
    slow = [grammars.compile(Grammar(kind="regex", text=f"slow{n}")) for n in range(2)]  # both threads
    begun.wait()
    dropped = [grammars.compile(Grammar(kind="regex", text=f"dropped{n}")) for n in range(40)]
    shared = [grammars.compile(Grammar(kind="regex", text="shared")) for _ in range(2)]
    for future in [*dropped, shared[0]]:
        future.cancel()
    go_on.set()
    assert [future.result() for future in [*slow, shared[1]]]
    assert sorted(compiled) == ["shared", "slow0", "slow1"]
    assert grammars.compile(Grammar(kind="regex", text="dropped7")).result()


def test_a_failure_that_is_not_the_grammars_is_not_remembered(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar, original = Grammar(kind="regex", text="a+"), grammars_module.source_of

    def no_memory(_: Grammar) -> str:
        raise MemoryError

    monkeypatch.setattr(grammars_module, "source_of", no_memory)
    with pytest.raises(InvalidGrammar, match="MemoryError"):
        grammars.compile(grammar).result()
    monkeypatch.setattr(grammars_module, "source_of", original)
    assert grammars.compile(grammar).result()


def test_a_pending_compile_can_be_cancelled(grammars: Grammars) -> None:
    grammar = Grammar(kind="regex", text="abc")
    grammars.compile(grammar).cancel()
    assert grammars.compile(grammar).result().accept(*ids("a")) is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "can't determine decoder"),
        ({"model": None}, "cannot be read as bytes"),
    ],
)
def test_a_tokenizer_without_bytes(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    parts = json.loads((TINY / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    grammars = Grammars(tmp_path, VOCAB_SIZE, [EOS])
    for _ in range(2):
        with pytest.raises(InvalidGrammar, match="not available for this model") as refusal:
            grammars.compile(Grammar(kind="regex", text="a")).result()
        assert words in str(refusal.value)
    grammars.close()


@pytest.mark.parametrize(
    ("file", "eos", "words"), [(False, [EOS], "no tokenizer.json"), (True, [], "end token")]
)
def test_a_model_without_what_is_needed(tmp_path: Path, file: bool, eos: list[int], words: str) -> None:
    grammars = Grammars(TINY if file else tmp_path, VOCAB_SIZE, eos)
    with pytest.raises(InvalidGrammar, match=words):
        grammars.compile(Grammar(kind="regex", text="a")).result()
    grammars.close()


def test_added_tokens_without_logits_are_left_out(tmp_path: Path, masks: Masks) -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.add_tokens([AddedToken(f"extra{i}") for i in range(VOCAB_SIZE)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    grammars = Grammars(tmp_path, VOCAB_SIZE, [EOS])
    constraint = grammars.compile(Grammar(kind="regex", text="extra[0-9]+|b")).result()
    assert TOKENIZER.get_vocab_size() in allowed(masks, constraint)
    grammars.close()


def test_byte_fallback_tokens_are_bytes(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "▁a": 2, "é": 3, "a": 4}
    vocabulary |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    grammars, masks = Grammars(tmp_path, 261, [1]), Masks(261, [1])
    constraint = grammars.compile(Grammar(kind="regex", text="( a|é)日")).result()
    assert allowed(masks, constraint) == {2, 3, 5 + 0x20, 5 + 0xC3}
    constraint.accept(3)
    for byte in "日".encode():
        assert allowed(masks, constraint) == {5 + byte}
        constraint.accept(5 + byte)
    assert allowed(masks, constraint) == {1}
    grammars.close()
    masks.close()
