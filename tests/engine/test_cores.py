"""Cores and quotas, and threads that wait without taking one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cores import usable_cores, wait_without_spinning


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def files(root: Path, **contents: str) -> Path:
    for name, content in contents.items():
        path = root / name.replace("__", "/").replace("_of_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_without_a_quota_all_cores_are_used(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8
    assert usable_cores(files(tmp_path, sys__fs__cgroup__cpu_of_max="max 100000\n")) == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_a_quota_of_the_container_is_heeded(quota: str, cores: int, tmp_path: Path) -> None:
    assert usable_cores(files(tmp_path, sys__fs__cgroup__cpu_of_max=quota)) == cores


def test_the_smallest_quota_above_a_process_counts(tmp_path: Path) -> None:
    files(
        tmp_path,
        proc__self__cgroup="0::/pods/one\n",
        sys__fs__cgroup__pods__one__cpu_of_max="max 100000",
        sys__fs__cgroup__pods__cpu_of_max="300000 100000",
    )
    assert usable_cores(tmp_path) == 3


def test_quotas_of_the_first_version(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/cpu/one"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("200000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    files(tmp_path, proc__self__cgroup="5:memory:/one\n3:cpu,cpuacct:/one\n")
    assert usable_cores(tmp_path) == 2
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == 8


def test_the_users_way_of_waiting_is_kept() -> None:
    chosen: dict[str, str] = {}
    wait_without_spinning(chosen)
    assert int(chosen["GOMP_SPINCOUNT"]) < 10_000
    for name, value in (("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "infinity")):
        environment = {name: value}
        wait_without_spinning(environment)
        assert environment == {name: value}


def test_the_engines_process_chooses_before_torch_is_there() -> None:
    code = "import sys, engine.process, engine.cores; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout == "False\n"
