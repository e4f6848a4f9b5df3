"""JSON schemas of every kind: what random tokens make under the masks is valid, or the schema was refused.

Logits are random; after a while tokens that close things are preferred, so that every output ends.
Two validators that know nothing of the grammar judge: the one that the consumer uses and jsonschema.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from jsonschema import validators
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from consumer.structured import validate
from engine.grammars import GrammarConstraint, Grammars, InvalidGrammar
from engine.masks import Masks
from engine.request import Grammar
from penstock.messages import StructuredOutputs
from tests.engine.schemas import accepted_schemas, generated_schema, refused_schemas

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny"
NUM_GENERATED = 120
NUM_FREE_TOKENS = 60
MAX_TOKENS = 600
BATCH = 32
OUTSIDE = (b"]", b"}", b',:"', b"ntf", b"0123456789-", b"{[.")
"""First bytes of tokens that lead a JSON value to its end, the best first."""
INSIDE = (b'"', b"0123456789abx@.:/ZDHMST", b"-+")
"""Single bytes that do inside a string, which ends when a pattern or a format has what it wants."""

ACCEPTED = accepted_schemas() | {f"generated {seed}": generated_schema(seed) for seed in range(NUM_GENERATED)}


class Vocabulary:
    """A model folder's tokenizer, as far as a sampler needs it."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_id: int) -> None:
        self.folder = folder
        self.vocab_size = vocab_size
        self.eos_token_id = eos_token_id
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.texts = [self.tokenizer.decode([i], skip_special_tokens=False) for i in range(vocab_size)]
        self.outside = np.array([_rank(OUTSIDE, text[:1]) for text in self.texts])
        self.inside = np.array([_rank(INSIDE, text) for text in self.texts])


def _rank(groups: tuple[bytes, ...], text: str) -> int:
    places = [rank for rank, group in enumerate(groups) if len(text) == 1 and text.encode() in group]
    return places[0] if places else len(groups)


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """The tiny model's, which is bytes and some words, and a trained one whose tokens span JSON's parts."""
    if request.param == "bytes":
        return Vocabulary(TINY, 468, 2)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([json.dumps(s, ensure_ascii=False) for s in ACCEPTED.values()], trainer)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    return Vocabulary(folder, 1216, 1)  # 16 ids of padding


def exact_multiple_of(validator: Any, divisor: float, instance: Any, schema: Any) -> Any:
    """jsonschema divides floats, of which 19.99 is no multiple of 0.01."""
    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(divisor)):
        yield jsonschema.ValidationError(f"{instance} is not a multiple of {divisor}")


def ecma_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    """Python's own `$` is also before a last newline, and its classes are Unicode's."""
    if "\\p" in pattern or not validator.is_type(instance, "string"):
        return
    if not re.search(pattern.replace("$", "\\Z"), instance, re.ASCII):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern}")


def judge(schema: dict[str, Any], text: str) -> str | None:
    """What is wrong with an output, by either validator."""
    words = validate(StructuredOutputs(json=schema), text)
    if words is not None:
        return words
    base = validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    exact = validators.extend(base, {"multipleOf": exact_multiple_of, "pattern": ecma_pattern})
    try:
        exact(schema).validate(json.loads(text))
    except jsonschema.ValidationError as error:
        return f"jsonschema: {error.message}"
    return None


class Walk:
    """One output on its way."""

    def __init__(self, constraint: GrammarConstraint, vocabulary: Vocabulary, seed: int) -> None:
        self.constraint = constraint
        self.vocabulary = vocabulary
        self.rng = np.random.default_rng(seed)
        self.token_ids: list[int] = []
        self.in_string = self.escaped = False
        self.done = False

    def push(self, bits: Any) -> None:
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        assert len(allowed), f"a row without a token after {self.text!r}"
        assert allowed[-1] < self.vocabulary.vocab_size
        score = self.rng.gumbel(size=len(allowed))
        if len(self.token_ids) > NUM_FREE_TOKENS:
            eos = allowed == self.vocabulary.eos_token_id
            ranks = self.vocabulary.inside if self.in_string else self.vocabulary.outside
            score -= np.where(eos, -100, 10 * ranks[allowed])
        token_id = int(allowed[score.argmax()])
        if token_id == self.vocabulary.eos_token_id:
            self.done = True
            return
        self.token_ids.append(token_id)
        self.follow(self.vocabulary.texts[token_id])
        self.done = self.constraint.accept(token_id)

    def follow(self, text: str) -> None:
        for char in text:
            if self.escaped:
                self.escaped = False
            elif char == '"':
                self.in_string = not self.in_string
            else:
                self.escaped = self.in_string and char == "\\"

    @property
    def text(self) -> str:
        return self.vocabulary.tokenizer.decode(self.token_ids)


def walk_all(walks: list[Walk], vocabulary: Vocabulary) -> None:
    """Batches of different grammars, each row at its own place."""
    masks = Masks(vocabulary.vocab_size, [vocabulary.eos_token_id])
    for first in range(0, len(walks), BATCH):
        batch = walks[first : first + BATCH]
        for _ in range(MAX_TOKENS):
            rows = [None if walk.done else walk.constraint for walk in batch]
            filled = masks.start(rows).wait()
            assert not filled.failures
            for place, bits in zip(filled.index, filled.bits, strict=True):
                batch[place].push(bits)
            if not len(filled.index):
                break
    masks.close()


def compiled(grammars: Grammars, schema: Any) -> GrammarConstraint:
    return grammars.compile(Grammar(kind="json_schema", text=json.dumps(schema))).result()


def test_outputs_of_accepted_schemas_are_valid(vocabulary: Vocabulary) -> None:
    assert len(ACCEPTED) >= 200
    grammars = Grammars(vocabulary.folder, vocabulary.vocab_size, [vocabulary.eos_token_id])
    walks = {
        name: Walk(compiled(grammars, schema), vocabulary, seed)
        for seed, (name, schema) in enumerate(ACCEPTED.items())
    }
    grammars.close()
    walk_all(list(walks.values()), vocabulary)
    wrong = {name: f"unfinished: {walk.text!r}" for name, walk in walks.items() if not walk.done}
    for name, walk in walks.items():
        words = judge(ACCEPTED[name], walk.text) if walk.done else None
        if words is not None:
            wrong[name] = f"{words} in {walk.text!r}"
    assert not wrong


def test_other_schemas_are_refused_with_the_compilers_words(vocabulary: Vocabulary) -> None:
    grammars = Grammars(vocabulary.folder, vocabulary.vocab_size, [vocabulary.eos_token_id])
    for name, case in refused_schemas().items():
        with pytest.raises(InvalidGrammar) as refusal:
            compiled(grammars, case["schema"])
        assert case["words"] in str(refusal.value), name
    grammars.close()
