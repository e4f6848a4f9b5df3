"""How many cores this process may use, and how its threads wait for each other. It does not import torch."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

_SPINS: Final = "1000"
"""A thread that has nothing to do looks so often for work before it sleeps: some microseconds. GNU's OpenMP
looks 300,000 times by default, and keeps from a core what the others wait for: on two cores that were shared
with several busy processes, what took some 60 seconds was not over after 100 by default."""


def usable_cores(root: Path = Path("/")) -> int:
    """Those that the scheduler gives this process, and no more than its control group's quota pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in (_quota(folder) for folder in _groups(root)) if quota is not None]
    return max(1, min([cores, *map(int, quotas)]))


def wait_without_spinning(environment: MutableMapping[str, str]) -> None:
    """Chooses how OpenMP's threads wait, where the user has not. To be called before torch is imported: the
    runtime looks once."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = _SPINS


def _groups(root: Path) -> list[Path]:
    """The folders of this process's control groups, of either version, up to their roots."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    mounts = {"": root / "sys/fs/cgroup", "cpu": root / "sys/fs/cgroup/cpu"}
    folders = list(mounts.values())  # in a container, the group itself is where it is mounted
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = mounts.get("cpu" if "cpu" in controllers.split(",") else controllers)
        if mount is not None:
            group = mount / path.strip("/")
            folders += [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]
    return folders


def _quota(group: Path) -> float | None:
    """Cores' worth of time that a group may use; None where nothing limits it."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        return None if quota in ("max", "-1") else int(quota) / int(period)
    return None
