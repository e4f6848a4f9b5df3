"""One part's crash, hang or failure costs that part alone, and what it had is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import WRITTEN
from benchmarks.gpu.outcomes import Outcome
from benchmarks.gpu.parts import GRACE_S, Part, PartResult, ending_of, run_part, run_parts
from benchmarks.gpu.plan import cpu_parts, gpu_parts
from benchmarks.gpu.pytests import run_files
from benchmarks.gpu.summary import table
from benchmarks.gpu.verdict import Verdict, load_verdict, verdict_on_engine, verdict_on_ops

ROOT = Path(__file__).parents[2]


def _script(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_parts_that_crash_hang_and_fail_cost_only_themselves(tmp_path: Path) -> None:
    hanging = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)
        time.sleep(600)
    """
    parts = [
        Part("crashing", _script("import os; print('so far', flush=True); os.abort()"), 60, proves=True),
        Part("hanging", _script(hanging), GRACE_S + 6, proves=True),
        Part("failing", _script("import sys; print('no'); sys.exit(1)"), 60),
        Part("raising", _script("raise ValueError('this')"), 60),
        Part("passing", _script("print('yes')"), 60, proves=True),
    ]
    seen: list[str] = []
    with (tmp_path / "log.txt").open("w") as log:
        results = run_parts(parts, 120, log, lambda result: seen.append(result.name))
    assert seen == [part.name for part in parts]
    assert [result.ending for result in results] == ["crashed", "timed out", "failed", "failed", "passed"]
    assert results[0].output == ["so far"]
    assert results[4].output == ["yes"]
    assert "ValueError: this" in results[3].output
    child = int(results[1].output[0].split()[1])
    assert not _is_alive(child), "what a part has started ends with it"
    assert [result.proves for result in results] == [True, True, False, False, True]
    assert "== passing" in (tmp_path / "log.txt").read_text()


def test_a_part_that_is_out_of_time_ends_what_it_started_elsewhere(tmp_path: Path) -> None:
    """In a group of its own: a signal to the part's group does not reach it."""
    parent = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = "import time; time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        print("child", child.pid, flush=True)
        try:
            time.sleep(600)
        finally:
            child.kill()
    """
    with (tmp_path / "log.txt").open("w") as log:
        result = run_part(Part("hanging", _script(parent), GRACE_S + 3), GRACE_S + 3, log)
    assert result.ending == "timed out"
    (line,) = [line for line in result.output if line.startswith("child ")]
    assert not _is_alive(int(line.split()[1]))


def _is_alive(pid: int) -> bool:
    """A process that has ended and waits for its parent to notice is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_no_part_starts_after_the_budget(tmp_path: Path) -> None:
    sleeping = Part("sleeping", _script("import time; time.sleep(60)"), 600)
    start = time.monotonic()
    with (tmp_path / "log.txt").open("w") as log:
        results = run_parts([sleeping, sleeping, sleeping], GRACE_S + 1.5, log, lambda result: None)
    assert time.monotonic() - start < 30
    assert results[0].ending == "timed out"
    assert results[-1].ending == "not run"


def test_a_part_is_told_how_long_it_has(tmp_path: Path) -> None:
    part = Part("asking", [*_script("import sys; print(sys.argv[1])"), "{seconds}"], 43)
    with (tmp_path / "log.txt").open("w") as log:
        assert run_part(part, 43, log).output == ["38"]


@pytest.mark.parametrize(
    ("status", "ending"), [(0, "passed"), (1, "failed"), (2, "failed"), (-6, "crashed"), (139, "crashed")]
)
def test_endings(status: int, ending: str) -> None:
    assert ending_of(status) == ending


TEST_FILES = {
    "test_good.py": """
        import pytest
        @pytest.mark.parametrize("i", range(5))
        def test_passes(i, record_property):
            record_property("verifies", "fp32")
        def test_fails():
            assert 1 == 2, "so it is"
        def test_skips():
            pytest.skip("not here")
    """,
    "test_crash.py": """
        import os
        def test_before(): pass
        def test_abort(): os.abort()
        def test_after(): pass
    """,
    "test_broken.py": "import no_such_module_at_all",
    "test_hang.py": """
        import time
        def test_before(): pass
        def test_sleep(): time.sleep(600)
    """,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """Of the files above, each of which was run by two processes."""
    folder = tmp_path_factory.mktemp("files")
    for name, code in TEST_FILES.items():
        (folder / name).write_text(textwrap.dedent(code))
    files = sorted(folder.glob("test_*.py"))
    found = run_files([file for file in files if "hang" not in file.name], 60, jobs=4, shards=2)
    found += run_files([folder / "test_hang.py"], 10, out=folder / "out.json")
    saved = json.loads((folder / "out.json").read_text())
    assert [one["result"] for one in saved] == ["passed", "timed out"]
    return {name: [one for one in found if one.file == name] for name in TEST_FILES}


def test_a_file_is_shared_by_processes(outcomes: dict[str, list[Outcome]]) -> None:
    found = sorted((one.test.split("::")[1], one.result) for one in outcomes["test_good.py"])
    passing = [(f"test_passes[{i}]", "passed") for i in range(5)]
    assert found == [("test_fails", "failed"), *passing, ("test_skips", "skipped")]
    failed = next(one for one in outcomes["test_good.py"] if one.result == "failed")
    assert "so it is" in failed.message


def test_a_crash_names_its_test_and_keeps_the_others(outcomes: dict[str, list[Outcome]]) -> None:
    found = {one.test.split("::")[1]: one.result for one in outcomes["test_crash.py"]}
    assert found == {"test_before": "passed", "test_abort": "crashed", "test_after": "passed"}


def test_a_hang_names_its_test_and_keeps_the_others(outcomes: dict[str, list[Outcome]]) -> None:
    found = {one.test.split("::")[1]: one.result for one in outcomes["test_hang.py"]}
    assert found == {"test_before": "passed", "test_sleep": "timed out"}


def test_a_file_that_cannot_be_imported_failed(outcomes: dict[str, list[Outcome]]) -> None:
    assert {one.result for one in outcomes["test_broken.py"]} == {"failed"}
    assert "no_such_module_at_all" in outcomes["test_broken.py"][0].message


def test_an_operation_is_verified_by_all_of_its_files() -> None:
    found = [
        Outcome("test_norm.py::a", "passed"),
        Outcome("test_attention.py::a", "passed"),
        Outcome("test_attention_features.py::b[x]", "failed"),
        Outcome("test_norm.py::skipped", "skipped"),
        Outcome("test_mask.py::all", "skipped"),
        Outcome("test_moe.py", "crashed"),
    ]
    verdict = verdict_on_ops(found)
    assert verdict.ops == {"norm": True, "attention": False, "moe": False}
    assert verdict.of_op("norm")
    assert not verdict.of_op("argmax"), "nothing tested it"


def test_an_engine_is_verified_by_all_of_its_tests() -> None:
    def outcome(result: str, verifies: str) -> Outcome:
        return Outcome(f"test_equality.py::{verifies}", result, properties={"verifies": verifies})

    found = [outcome("passed", "fp32"), outcome("passed", "bf16"), outcome("failed", "bf16")]
    verdict = verdict_on_engine(found)
    assert verdict.engine == {"fp32": True, "bf16": False}
    assert verdict.of_engine("fp32")
    assert not verdict.of_engine("fp32", "fp8")
    assert not verdict.of_engine("fp16")
    crashed = verdict_on_engine([*found, Outcome("test_equality.py::unknown", "crashed")])
    assert crashed.engine == {"fp32": False, "bf16": False}, "it did not live to say what it verified"


def test_verdicts_add_up_and_survive_the_disk(tmp_path: Path) -> None:
    both = Verdict({"norm": True}, {"fp32": True}).merged(Verdict({"norm": False}, {"bf16": True}))
    assert both == Verdict({"norm": False}, {"fp32": True, "bf16": True})
    both.save(tmp_path / "verdict.json")
    assert load_verdict(tmp_path / "verdict.json") == both
    assert load_verdict(tmp_path / "none.json") == load_verdict(None) == Verdict()


def test_the_table_comes_even_where_files_are_missing_or_torn(tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_text('{"rows": [')
    (tmp_path / "equality.json").write_text(
        json.dumps([{"test": "test_equality.py::a", "result": "crashed", "message": "", "seconds": 0}])
    )
    lines = "\n".join(table(tmp_path, [PartResult("engine equality", "crashed", 3.0, -6, True)]))
    assert "crashed: test_equality.py::a" in lines
    assert "nothing was measured" in lines
    assert "not verified" in lines


def test_plans_write_few_files_into_one_folder(tmp_path: Path) -> None:
    for parts in (gpu_parts(tmp_path, 8), cpu_parts(tmp_path, 2)):
        written = {Path(word) for part in parts for word in part.command if word.startswith(str(tmp_path))}
        written |= {tmp_path / "parts.json", tmp_path / "log.txt"}
        assert len(written) <= 8
        assert {path.name for path in written} == set(WRITTEN)
        assert all(path.parent == tmp_path for path in written)
        assert [part.name for part in parts if part.proves] == ["device", "kernel tests", "engine equality"]
    proving = sum(part.limit_s for part in gpu_parts(tmp_path, 8)[:-1])
    assert proving < 0.9 * 8 * 60, "the engines have time left whatever the others take"


def test_one_command_runs_parts_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--cpu", "--minutes", "2", "--out", str(tmp_path)]
    command += ["--parts", "device", "kernels"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert found.returncode == 0, found.stdout + found.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "device.json",
        "kernels.json",
        "parts.json",
        "log.txt",
    }
    device = json.loads((tmp_path / "device.json").read_text())
    assert device["missing"] == {}
    assert {"torch", "triton", "transformers", "commit", "gpu", "nvidia_smi"} <= device.keys()
    assert "not verified: " in found.stdout
    parts = json.loads((tmp_path / "parts.json").read_text())
    assert [(part["name"], part["ending"]) for part in parts] == [("device", "passed"), ("kernels", "passed")]


def test_what_is_missing_is_named_and_how_to_lay_it_beside(tmp_path: Path) -> None:
    (tmp_path / "llguidance.py").write_text("raise ImportError('there is no llguidance')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "benchmarks.gpu.device", "--cpu", "--out", str(tmp_path / "device.json")]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "there is no llguidance" in found.stdout
    assert "-d .whl llguidance" in found.stdout
    assert set(json.loads((tmp_path / "device.json").read_text())["missing"]) == {
        "llguidance",
        "engine.engine",
    }


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["benchmarks.gpu", "--parts", "nosuch"], "invalid choice: 'nosuch'"),
        (["benchmarks.gpu", "--minutes", "0"], "--minutes: more than 0"),
        (["benchmarks.engine", "--kv-cache-dtype", "fp9"], "invalid choice: 'fp9'"),
        (["benchmarks.engine", "--peer", "nosuch"], "invalid choice: 'nosuch'"),
        (["benchmarks.engine", "--verdict", "nowhere.json"], "there is no file nowhere.json"),
        (["benchmarks.engine", "--repeat", "0"], "--repeat: at least 1"),
    ],
)
def test_wrong_flags_are_named(command: list[str], words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr


def test_without_a_gpu_it_says_so_at_once_and_leaves_nothing() -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path for path in results.rglob("*") if path.is_file()}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("no GPU here: nothing was proved and nothing measured")
    assert {path for path in results.rglob("*") if path.is_file()} == before
