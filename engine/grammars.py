"""Structured output: grammars compiled aside, followed token by token, and turned into masks of tokens.

    compile     in threads of its own, once per text, as long as it is kept; every sample gets a copy
    follow      `GrammarConstraint`, which the scheduler feeds with the tokens of its sample
    fill        `engine.masks`, while the model runs

The work is done by llguidance: derivatives of regular expressions below, an Earley parser above, walked over
a trie of the vocabulary. Its limits, which count steps and not time, keep one grammar from stopping the rest:
a request that exceeds them ends in an error, the same one however often it runs.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.constraint import ConstraintViolated
from engine.request import Grammar, GrammarKind
from engine.vocabulary import VocabularyUnavailable, load_vocabulary

MAX_GRAMMAR_CHARS: Final = 256 * 1024
"""A longer text is refused: compile times and memory grow with it (1.6 s and 60 MB for the worst seen)."""
MAX_KEPT_GRAMMARS: Final = 256
MAX_KEPT_CHARS: Final = 2 * 1024 * 1024
"""Of all compiled grammars together, which are kept by their last use."""
NUM_THREADS: Final = 2
"""A grammar that takes long does not hold up the others."""
STACK_BYTES: Final = 256 * 1024 * 1024
"""The compiler descends into rules that refer to rules: a chain of 22,000 of them, which is what fits the
longest text, needs over 64 MiB of stack. Untouched pages cost nothing."""
MAX_ERROR_CHARS: Final = 1000


def _limits(max_items_in_row: int) -> LLParserLimits:
    return LLParserLimits(
        step_lexer_fuel=100_000,
        step_max_items=10_000,
        max_items_in_row=max_items_in_row,
        max_lexer_states=50_000,  # one or two kilobytes each, in every sample
        verbose_errors=False,
    )


# At these limits the dearest step that was found took 30 ms; at the library's own, one took 3.5 s.
LIMITS: Final[dict[GrammarKind, LLParserLimits]] = {
    # An object's optional properties are in one row, four items each.
    "json_schema": _limits(5_000),
    "regex": _limits(500),
    # The time of a step grows with the square of the row where a grammar is ambiguous, as these may be.
    "lark": _limits(500),
}
MAX_EXACT_INTEGER: Final = 2**53
"""The compiler reads numbers as doubles, and would ask for a neighbour of a larger constant."""
WHITE_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between JSON's tokens. The format allows any amount, and small models get lost in it."""


class InvalidGrammar(Exception):
    """The request's grammar cannot be compiled, or not for this model; the words are for who wrote it."""


class GrammarConstraint:
    """One sample's way through a grammar; an `engine.constraint.Constraint`."""

    __slots__ = ("matcher",)

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher
        """For whoever fills masks; nobody else feeds it."""

    def accept(self, token_id: int) -> bool:
        """See `Constraint.accept`. Must not be called while a mask of this constraint is being filled."""
        with _as_violation():
            consumed = self.matcher.consume_token(token_id)
        if not consumed:
            raise ConstraintViolated(
                f"token {token_id} does not fit the grammar{_words(self.matcher, before=': ')}"
            )
        if not self.matcher.is_stopped():
            return False
        if not self.matcher.is_accepting() and self.matcher.stop_reason() != "EndOfSentence":
            raise ConstraintViolated(f"the grammar has come to a dead end{_words(self.matcher, before=': ')}")
        return True

    def fork(self) -> GrammarConstraint:
        """Another one in the same state: 5 to 50 µs."""
        with _as_violation():
            return GrammarConstraint(self.matcher.deep_copy())

    def failure(self) -> str | None:
        """Why nothing can follow although the output is incomplete; None while something can."""
        if self.matcher.is_error() or (self.matcher.is_stopped() and not self.matcher.is_accepting()):
            return f"the grammar allows no token{_words(self.matcher, before=': ')}"
        return None


class Grammars:
    """Compiles grammars for one model. For one thread, the engine's; `close` ends its threads."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._load = partial(load_vocabulary, folder, vocab_size, tuple(eos_token_ids))
        self._loading = threading.Lock()
        self._vocabulary: LLTokenizer | InvalidGrammar | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._keeping = threading.Lock()
        self._kept: OrderedDict[Grammar, Future[GrammarConstraint]] = OrderedDict()
        self._kept_chars = 0
        self._wanted: dict[Grammar, list[Future[GrammarConstraint]]] = {}  # what is not compiled yet, by whom

    def compile(self, grammar: Grammar) -> Future[GrammarConstraint]:
        """A constraint at its start. The future is done at once where the grammar is kept.

        Whoever needs it no more cancels the future: what nobody waits for is not compiled. It raises
        InvalidGrammar, with the compiler's words.
        """
        copy: Future[GrammarConstraint] = Future()
        with self._keeping:
            compiled = self._kept.get(grammar)
            if compiled is None:
                if self._pool is None:
                    self._pool = _deep_pool()
                self._wanted.setdefault(grammar, []).append(copy)
                compiled = self._pool.submit(self._compile_wanted, grammar)
                self._keep(grammar, compiled)
            elif grammar in self._wanted:
                self._wanted[grammar].append(copy)
            self._kept.move_to_end(grammar)
        compiled.add_done_callback(partial(_copy_into, copy))
        return copy

    def close(self) -> None:
        """Ends the threads; what has not begun is cancelled."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _keep(self, grammar: Grammar, compiled: Future[GrammarConstraint]) -> None:
        self._kept[grammar] = compiled
        self._kept_chars += len(grammar.text)
        while len(self._kept) > 1 and (
            len(self._kept) > MAX_KEPT_GRAMMARS or self._kept_chars > MAX_KEPT_CHARS
        ):
            self._forget(next(iter(self._kept)))

    def _forget(self, grammar: Grammar) -> None:
        if self._kept.pop(grammar, None) is not None:
            self._kept_chars -= len(grammar.text)

    def _compile_wanted(self, grammar: Grammar) -> GrammarConstraint:
        with self._keeping:
            waiting = self._wanted.get(grammar)
            if waiting and all(copy.cancelled() for copy in waiting):
                del self._wanted[grammar]
                self._forget(grammar)
                raise CancelledError
        try:
            return self._compile(grammar)
        except InvalidGrammar:
            raise
        except BaseException:  # no memory, say: another time it may work
            with self._keeping:
                self._forget(grammar)
            raise
        finally:
            with self._keeping:
                self._wanted.pop(grammar, None)

    def _compile(self, grammar: Grammar) -> GrammarConstraint:
        if len(grammar.text) > MAX_GRAMMAR_CHARS:
            raise InvalidGrammar(
                f"the grammar has {len(grammar.text)} characters: at most {MAX_GRAMMAR_CHARS} are compiled"
            )
        matcher = LLMatcher(self._loaded(), source_of(grammar), log_level=0, limits=LIMITS[grammar.kind])
        if matcher.is_error():
            raise InvalidGrammar(_words(matcher) or "the grammar cannot be compiled")
        # The first mask is the dearest; every copy has what it taught the lexer.
        matcher.compute_bitmask()
        constraint = GrammarConstraint(matcher)
        if constraint.failure() is not None:
            raise InvalidGrammar(f"no output matches the grammar{_words(matcher, before=': ')}")
        return constraint

    def _loaded(self) -> LLTokenizer:
        with self._loading:
            if self._vocabulary is None:
                try:
                    self._vocabulary = self._load()
                except VocabularyUnavailable as error:
                    self._vocabulary = InvalidGrammar(
                        f"structured output is not available for this model: {error}"
                    )
        if isinstance(self._vocabulary, InvalidGrammar):
            raise InvalidGrammar(*self._vocabulary.args)
        return self._vocabulary


def source_of(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            _refuse_rounded_integers(grammar.text)
            try:
                return LLMatcher.grammar_from_json_schema(
                    grammar.text, defaults={"whitespace_pattern": WHITE_SPACE}
                )
            except ValueError as error:
                raise InvalidGrammar(f"the JSON schema cannot be read: {error}") from None
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


def _refuse_rounded_integers(schema_text: str) -> None:
    if not re.search(r"\d{16}", schema_text):  # nearly always
        return

    def read(digits: str) -> None:
        if len(digits) > 20 or abs(int(digits)) > MAX_EXACT_INTEGER:
            raise InvalidGrammar(f"the JSON schema has {digits[:40]}: integers beyond 2^53 are not supported")

    with contextlib.suppress(ValueError, RecursionError):  # which the compiler puts into words
        json.loads(schema_text, parse_int=read)


@contextlib.contextmanager
def _as_violation() -> Generator[None]:
    """The library's own failures, panics included, end one request and not the engine."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise ConstraintViolated(f"the grammar failed: {error!r}") from error


def _words(matcher: LLMatcher, before: str = "") -> str:
    """The compiler's, cut to a length that a person reads: it may quote the whole grammar."""
    words = matcher.get_error().removesuffix("<non-verbose/>\n").removesuffix("<non-verbose/>").strip()
    if len(words) > MAX_ERROR_CHARS:
        words = words[:MAX_ERROR_CHARS] + " …"
    return before + words if words else ""


def _copy_into(copy: Future[GrammarConstraint], compiled: Future[GrammarConstraint]) -> None:
    if not copy.set_running_or_notify_cancel():
        return
    if compiled.cancelled() or isinstance(compiled.exception(), CancelledError):
        copy.set_exception(InvalidGrammar("the engine closes"))
        return
    error = compiled.exception()
    if error is None:
        try:
            copy.set_result(compiled.result().fork())
        except ConstraintViolated as failed:
            copy.set_exception(InvalidGrammar(str(failed)))
    elif isinstance(error, InvalidGrammar):
        copy.set_exception(error)
    else:  # a panic in the compiler, say: it is this grammar that brought it about
        copy.set_exception(InvalidGrammar(f"the grammar compiler failed: {error!r}"[:MAX_ERROR_CHARS]))


def _deep_pool() -> ThreadPoolExecutor:
    """Threads with deep stacks. All are started here: the size holds for any thread started meanwhile."""
    before = threading.stack_size(STACK_BYTES)
    try:
        pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        started = threading.Barrier(NUM_THREADS + 1)
        for _ in range(NUM_THREADS):
            pool.submit(started.wait)
        started.wait()
        return pool
    finally:
        threading.stack_size(before)
