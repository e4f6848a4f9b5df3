"""What is exported, how light the import is, what is refused, and that the base distribution is enough."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import penstock
from penstock import InstallationError, errors
from penstock.installed import refuse_clash

ROOT = Path(__file__).parents[2]

EXPORTED = [
    "Attempt",
    "Batch",
    "BatchCounts",
    "BatchExists",
    "BatchUnknown",
    "Client",
    "Completion",
    "CursorMoved",
    "DeadLetter",
    "Done",
    "Ended",
    "Error",
    "Event",
    "Expired",
    "Failed",
    "Finding",
    "FinishedRow",
    "FunctionCall",
    "FunctionDefinition",
    "InstallationError",
    "InvalidJob",
    "InvalidJobId",
    "Job",
    "JobFailed",
    "JobId",
    "JobLost",
    "JobStatus",
    "JobTooLarge",
    "Lane",
    "LaneSettings",
    "Leased",
    "Lost",
    "Message",
    "NoSuchLetter",
    "PenstockError",
    "PoolingParams",
    "QueueFull",
    "Queued",
    "ReasoningMarkers",
    "Released",
    "RepetitionDetection",
    "ResultTimeout",
    "SamplingParams",
    "Score",
    "ServerError",
    "ServerFull",
    "ServerReport",
    "ServerUnavailable",
    "ServerUnsuitable",
    "StructuredOutputs",
    "SyncBatch",
    "SyncClient",
    "TextPart",
    "TokenLogprob",
    "Tokens",
    "Tool",
    "ToolCall",
    "TopLogprob",
    "Unknown",
    "Usage",
    "__version__",
    "check_server",
]


def test_exports_are_pinned_and_exist() -> None:
    assert penstock.__all__ == EXPORTED == sorted(EXPORTED)
    for name in EXPORTED:
        assert getattr(penstock, name) is not None
        assert name in dir(penstock)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        penstock.Nothing  # noqa: B018 - the look-up is the test


def test_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert penstock.__version__ == metadata.version("penstock") == project["version"]


def test_the_drawn_exception_tree_is_the_real_one() -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if line.strip()][1:]
    drawn: dict[str, set[str]] = {}
    path: list[str] = []
    for line in lines:
        words = line.lstrip("│├└─ ").split()
        depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
        path = [*path[:depth], words[0]]
        also = {words[1].strip("()")} if len(words) > 1 and words[1].startswith("(") else set[str]()
        # One with two bases of ours is drawn below both.
        drawn[words[0]] = drawn.get(words[0], set()) | also | set(path[-2:-1])
    real = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.PenstockError)
    ]
    assert sorted(drawn) == sorted(real)
    for name, bases in drawn.items():
        real_bases = {base.__name__ for base in getattr(errors, name).__bases__}
        assert bases == real_bases - {"Exception"}, name


def python(code: str, *arguments: str) -> str:
    """Run code in a new interpreter, warnings being errors."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_importing_loads_neither_redis_nor_asyncio() -> None:
    code = "import sys, penstock; print([m for m in ('redis', 'asyncio', 'torch') if m in sys.modules])"
    assert python(code) == "[]"


# A finder that knows the standard library and what `pip install penstock` brings, and nothing else: the base
# distribution alone, without a virtual environment to build.
ALONE = """
import sys

class Wall:
    allowed = {"penstock", "msgspec", "redis", *sys.stdlib_module_names}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"behind the wall: {name}", name=name)

sys.meta_path.insert(0, Wall())
try:
    import hypothesis
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the wall has a hole")

import asyncio, penstock
for name in penstock.__all__:
    getattr(penstock, name)
import penstock.schema, penstock.installed, penstock.scripts

async def main():
    async with penstock.Client(sys.argv[1]) as client:
        job_id = await client.submit("What is 2 + 2?")
        assert await client.cancel(job_id)
        print((await client.status(job_id)).event.error.type)

asyncio.run(main())
with penstock.SyncClient(sys.argv[1]) as client:
    print(type(client.status(client.submit("x"))).__name__)
"""


def test_the_base_distribution_alone_is_enough(redis_url: str) -> None:
    assert python(ALONE, redis_url).split() == ["cancelled", "Queued"]


def test_the_base_requirements_are_msgspec_and_redis() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [requirement.partition(">")[0] for requirement in project["dependencies"]] == ["msgspec", "redis"]


def test_hugging_faces_kernels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_clash()
    folder = tmp_path / "kernels-0.9.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InstallationError, match=r"`kernels` 0\.9\.0 .* `pip uninstall kernels`") as caught:
        refuse_clash()
    assert isinstance(caught.value, RuntimeError)
