"""A scripted stand-in for the engine process: speaks the engine's frames, computes nothing.

The one fake of the test suite. Its output for a request is a function of the prompt alone: token i is
`(sum(prompt) + i) % 26 + 97`, a lower-case letter in a byte-level vocabulary, so a resumed request goes on
exactly as an undisturbed one. Its script is the configuration's `model` field, a JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.messages import HEADER, Abort, Ready, Step, Submit, command_decoder, encode_frame
from engine.request import Output, Request


def token_at(prompt: list[int], position: int) -> int:
    """The scripted output token at this position."""
    return (sum(prompt) + position) % 26 + 97


class ScriptedEngine:
    """One token per request and step, `step_s` apart."""

    def __init__(self, link: socket.socket, config: EngineConfig) -> None:
        self.link = link
        self.config = config
        self.script = json.loads(Path(config.model, "script.json").read_text())
        self.waiting: list[Request] = []
        self.running: dict[str, tuple[Request, int]] = {}
        self.seen = 0
        self.buffer = b""

    def serve(self) -> None:
        """Until the socket closes."""
        if self.script.get("restart_s") and Path(self.config.model, "died").exists():
            time.sleep(self.script["restart_s"])
        self._send_ready()
        while True:
            busy = bool(self.waiting or self.running)
            self.link.setblocking(not busy)
            try:
                data = self.link.recv(1 << 20)
                if not data:
                    return
                self.buffer += data
            except BlockingIOError:
                pass
            self._take_commands()
            if self.waiting or self.running:
                self._step()

    def _send_ready(self) -> None:
        ready = Ready(
            model=self.config.model,
            model_path=self.config.model,
            fingerprint="scripted",
            max_model_len=self.script.get("max_model_len", 512),
            vocab_size=300,
            max_num_seqs=self.config.max_num_seqs,
            num_blocks=1000,
            block_size=16,
            eos_token_ids=[257],
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
                case Submit(requests):
                    self.waiting += requests
                    self._log(requests)
                case Abort(ids):
                    self.waiting = [r for r in self.waiting if r.request_id not in ids]
                    for request_id in ids:
                        self.running.pop(request_id, None)

    def _log(self, requests: list[Request]) -> None:
        if "log" in self.script:
            with open(self.script["log"], "a") as log:
                for request in requests:
                    log.write(json.dumps([request.request_id, len(request.output_token_ids)]) + "\n")

    def _step(self) -> None:
        while self.waiting and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.pop(0)
            self.running[request.request_id] = (request, len(request.output_token_ids))
        time.sleep(self.script.get("step_s", 0.0))
        outputs = [self._advance(request_id) for request_id in list(self.running)]
        self._send(
            Step(
                outputs=outputs,
                num_running=len(self.running),
                num_waiting=len(self.waiting),
                num_free_blocks=1000,
                num_preemptions=0,
            )
        )

    def _advance(self, request_id: str) -> Output:
        request, position = self.running[request_id]
        self.seen += 1
        if self.seen == self.script.get("die_after_tokens") and self._first_life():
            os.abort()
        token = token_at(request.prompt_token_ids, position)
        if request.prompt_token_ids[-1] in self.script.get("poison_tokens", []):
            os.abort()
        ended = position + 1 >= request.params.max_tokens
        self.running[request_id] = (request, position + 1)
        if ended:
            del self.running[request_id]
        return Output(request_id=request_id, token_ids=[token], finish_reason="length" if ended else None)

    def _first_life(self) -> bool:
        marker = Path(self.config.model, "died")
        if marker.exists():
            return False
        marker.touch()
        return True

    def _send(self, message: Ready | Step) -> None:
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
