"""A scripted stand-in for the engine process: speaks the engine's frames, computes nothing.

The one fake of the test suite. Its output for a request is a function of prompt and sample alone: token i
of sample s is `(sum(prompt) + i + 7 * s) % 26 + 97`, a lower-case letter in a byte-level vocabulary, so a
resumed request goes on exactly as an undisturbed one. Its script is an object, script.json in the model's
folder:

- `step_s`: seconds that a step takes; `max_model_len`
- `log`: a file for what was asked of it, see `logged`
- `die_after_tokens`, `restart_s`, `poison_tokens`: deaths; `last_words`: what it reports before the first;
  `poison_step`: in which step after it was admitted a poison kills, by default the first; `hangs`: it makes
  the engine hang instead
- `eos_at`: by sample index as text, the position at which its end token comes
- `says`: the text that every output is, an end token behind it; `tokens`: the same as token ids
- `fingerprint`: of model and precision
- `fails`: what a prompt ends with, as a token, whose requests fail at their `fail_at`th token in the first
  `fail_runs` runs of their job
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.messages import HEADER, Abort, Fatal, Ready, Step, Submit, command_decoder, encode_frame
from engine.request import Output, Request, Sample, TokenLogprobs

EOS = 257


def run_of(request_id: str) -> str:
    """Job and delivery of a request, job/delivery: its serial says nothing to a test."""
    return request_id.rpartition(".")[0]


def token_at(prompt: list[int], position: int, sample: int = 0) -> int:
    """The scripted output token at this position."""
    return (sum(prompt) + position + 7 * sample) % 26 + 97


def logprobs_of(token: int, count: int) -> TokenLogprobs:
    """Scripted log-probabilities: binary fractions, which JSON gives back as they were."""
    top = [(token, -token / 64), (EOS, -float("inf")), *((n, -8.0 - n) for n in range(20))]
    return TokenLogprobs(logprob=-token / 64, rank=1, top=top[:count])


def logged(path: Path, name: str) -> list[Any]:
    """What the log holds under this name: for `request` pairs of id and {sample: tokens it had already}."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [value for found, value in lines if found == name]


class ScriptedEngine:
    """One token per sample and step, `step_s` apart."""

    def __init__(self, link: socket.socket, config: EngineConfig) -> None:
        self.link = link
        self.config = config
        self.max_num_seqs = config.max_num_seqs or 64
        self.script = json.loads(Path(config.model, "script.json").read_text())
        self.waiting: list[tuple[Request, Sample]] = []
        self.running: dict[tuple[str, int], tuple[Request, int]] = {}
        self.ended: list[Output] = []
        self.scored: set[str] = set()
        self.seen = 0
        self.num_prompt_tokens = self.num_cached_tokens = self.num_steps = self.num_computed_tokens = 0
        self.steps: dict[tuple[str, int], int] = {}
        self.buffer = b""

    def serve(self) -> None:
        """Until the socket closes."""
        if self.script.get("restart_s") and Path(self.config.model, "died").exists():
            time.sleep(self.script["restart_s"])
        self._send_ready()
        while True:
            self.link.setblocking(not self._busy)
            try:
                data = self.link.recv(1 << 20)
                if not data:
                    return
                self.buffer += data
            except BlockingIOError:
                pass
            self._take_commands()
            if self._busy:
                self._step()

    @property
    def _busy(self) -> bool:
        return bool(self.waiting or self.running or self.ended)

    def _send_ready(self) -> None:
        ready = Ready(
            model=self.config.model,
            model_path=self.config.model,
            fingerprint=self.script.get("fingerprint", "scripted"),
            max_model_len=self.script.get("max_model_len", 512),
            vocab_size=300,
            max_num_seqs=self.max_num_seqs,
            num_blocks=1000,
            block_size=16,
            eos_token_ids=[EOS],
        )
        self._send(ready)

    def _take_commands(self) -> None:
        while len(self.buffer) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self.buffer)[0]
            if len(self.buffer) < end:
                return
            command = command_decoder.decode(self.buffer[HEADER.size : end])
            self.buffer = self.buffer[end:]
            match command:
                case Submit(requests, last):
                    for request in requests:
                        self._take(request)
                    if last:
                        self._log("last", True)
                case Abort(ids, samples):
                    self._log("abort", [[run_of(request_id) for request_id in ids], samples])
                    gone = {(request_id, index) for request_id, index in samples}
                    self.waiting = [
                        (request, sample)
                        for request, sample in self.waiting
                        if request.request_id not in ids and (request.request_id, sample.index) not in gone
                    ]
                    for key in [key for key in self.running if key[0] in ids or key in gone]:
                        del self.running[key]

    def _take(self, request: Request) -> None:
        resumed = {sample.index: len(sample.output_token_ids) for sample in request.samples}
        self._log("request", [run_of(request.request_id), resumed])
        refused = request.params.grammar is not None and "nonsense" in request.params.grammar.text
        if refused:
            words = "nonsense is no grammar"
            self.ended.append(
                Output(request_id=request.request_id, token_ids=[], error=words, error_type="invalid_job")
            )
        elif request.kind != "generate":
            self.ended.append(self._pooled(request))
        else:
            self.waiting += [(request, sample) for sample in request.samples]

    def _pooled(self, request: Request) -> Output:
        prompt, params = request.prompt_token_ids, request.params
        score, count = request.kind == "score", params.prompt_logprobs or 0
        return Output(
            request_id=request.request_id,
            token_ids=[],
            finish_reason="length",
            prompt_logprobs=[logprobs_of(token, count) for token in prompt[1:]] if score else [],
            embedding=[] if score else [float(len(prompt)), 0.5 if params.pooling == "last" else 0.25],
            num_cached_tokens=len(prompt) // 2,
        )

    def _log(self, name: str, value: Any) -> None:
        if "log" in self.script:
            with open(self.script["log"], "a") as log:
                log.write(json.dumps([name, value]) + "\n")

    def _step(self) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs:
            request, sample = self.waiting.pop(0)
            position = len(sample.output_token_ids)
            if position and (sample.output_token_ids[-1] == EOS or position >= request.params.max_tokens):
                ended = sample.output_token_ids[-1] == EOS
                self.ended.append(
                    Output(
                        request_id=request.request_id,
                        token_ids=[],
                        sample=sample.index,
                        finish_reason="stop" if ended else "length",
                        stop_token_id=EOS if ended else None,
                    )
                )
                continue
            self.running[request.request_id, sample.index] = (request, position)
            if sample.index == 0:  # as the engine counts: its siblings start with its blocks
                self.num_prompt_tokens += len(request.prompt_token_ids)
                self.num_cached_tokens += len(request.prompt_token_ids) // 2
            self.num_computed_tokens += len(request.prompt_token_ids) - 1
        self.num_steps += 1
        self.num_computed_tokens += len(self.running)
        num_held = len(self.running)
        time.sleep(self.script.get("step_s", 0.0))
        outputs = self.ended + [self._advance(key) for key in list(self.running)]
        self.ended = []
        self._send(
            Step(
                outputs=outputs,
                num_running=len(self.running),
                num_waiting=len(self.waiting),
                num_free_blocks=1000 - num_held,
                num_preemptions=0,
                num_prompt_tokens=self.num_prompt_tokens,
                num_cached_tokens=self.num_cached_tokens,
                num_steps=self.num_steps,
                num_computed_tokens=self.num_computed_tokens,
                busy_us=1000 * self.num_steps,
            )
        )

    def _advance(self, key: tuple[str, int]) -> Output:
        request, position = self.running[key]
        params, prompt = request.params, request.prompt_token_ids
        self.seen += 1
        if self.seen == self.script.get("die_after_tokens") and self._first_life():
            if "last_words" in self.script:
                self._send(Fatal(self.script["last_words"]))
                sys.exit(1)
            os.abort()
        self.steps[key] = self.steps.get(key, 0) + 1
        poison = prompt[-1] in self.script.get("poison_tokens", [])
        if poison and self.steps[key] >= self.script.get("poison_step", 1):
            if self.script.get("hangs"):
                signal.pause()
            os.abort()
        if self._fails(request) and position == self.script.get("fail_at", 0):
            del self.running[key]
            return Output(request_id=request.request_id, token_ids=[], sample=key[1], error="it slipped")
        token = self._token(request, key[1], position)
        stopped = token == EOS and not params.ignore_eos
        ended = stopped or position + 1 >= params.max_tokens
        self.running[key] = (request, position + 1)
        if ended:
            del self.running[key]
        first = params.prompt_logprobs is not None and request.request_id not in self.scored
        self.scored.add(request.request_id)
        return Output(
            request_id=request.request_id,
            token_ids=[token],
            sample=key[1],
            finish_reason="stop" if stopped else "length" if ended else None,
            stop_token_id=EOS if stopped else None,
            logprobs=[] if params.logprobs is None else [logprobs_of(token, params.logprobs)],
            prompt_logprobs=[logprobs_of(t, params.prompt_logprobs or 0) for t in prompt[1:]]
            if first
            else [],
            num_cached_tokens=len(prompt) // 2,
        )

    def _token(self, request: Request, sample: int, position: int) -> int:
        if (text := self.script.get("says")) is not None:
            return text.encode()[position] if position < len(text.encode()) else EOS
        if (tokens := self.script.get("tokens")) is not None:
            return tokens[position] if position < len(tokens) else EOS
        if self.script.get("eos_at", {}).get(str(sample)) == position:
            return EOS
        return token_at(request.prompt_token_ids, position, sample)

    def _fails(self, request: Request) -> bool:
        run = int(run_of(request.request_id).rpartition("/")[2])
        return request.prompt_token_ids[-1] == self.script.get("fails") and run <= self.script["fail_runs"]

    def _first_life(self) -> bool:
        marker = Path(self.config.model, "died")
        if marker.exists():
            return False
        marker.touch()
        return True

    def _send(self, message: Ready | Step | Fatal) -> None:
        self.link.setblocking(True)
        self.link.sendall(encode_frame(message))


def main() -> None:
    """Entry point: socket descriptor and configuration are the arguments."""
    link = socket.socket(fileno=int(sys.argv[1]))
    config = msgspec.json.decode(sys.argv[2], type=EngineConfig)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the consumer was killed
        ScriptedEngine(link, config).serve()


if __name__ == "__main__":
    main()
