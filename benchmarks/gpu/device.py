"""What this machine is, and what the run needs and lacks: `python -m benchmarks.gpu.device`.

Prints a line of each, writes JSON to `--out`, and ends with status 1 where something is missing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.surroundings import surroundings

NEEDED = ("torch", "triton", "transformers", "numpy", "safetensors", "msgspec", "llguidance", "pytest")
"""What engine, operations and their tests import from outside; the rest comes with these."""
QUERY = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.mem", "power.limit")
PINNED = {"msgspec": "msgspec==0.22.0", "llguidance": "llguidance==1.9.1"}
"""Without a version pip takes an older one, if that is all there is for the platforms named."""
HOW = (
    "lay wheels beside: on a machine with a network `pip download --no-deps --only-binary=:all: "
    "--python-version {python} --platform manylinux_2_31_x86_64 --platform manylinux_2_17_x86_64 "
    "--platform manylinux2014_x86_64 -d .whl {names}`, here `python3 -m pip install --no-index --no-deps "
    "--target /tmp/site .whl/*.whl` and PYTHONPATH=/tmp/site"
)


def missing() -> dict[str, str]:
    """Modules that cannot be imported, and why."""
    found: dict[str, str] = {}
    for name in (*NEEDED, "engine.engine"):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises
            found[name] = f"{type(error).__name__}: {error}"
    return found


def describe() -> dict[str, Any]:
    """The device, its driver, and versions. Where there is no GPU, `gpu` is None."""
    around = surroundings("torch", "triton", "transformers", "msgspec", "llguidance", "numpy")
    return {**around, "gpu": _gpu(), "nvidia_smi": nvidia_smi()}


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    x = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
    works = float(x.double().sum()) == (1 << 20) * ((1 << 20) - 1) / 2
    free, total = torch.cuda.mem_get_info()
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": total,
        "free_bytes": free,
        "cuda": torch.version.cuda,
        "computes": works,
    }


def nvidia_smi() -> dict[str, str]:
    """Name, driver, memory and limits of the first GPU; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(QUERY, (word.strip() for word in said.splitlines()[0].split(",")), strict=False))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.device", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true", help="no GPU is wanted")
    args = parser.parse_args()
    lacking = missing()
    found: dict[str, Any] = {"missing": lacking}
    if "torch" not in lacking:
        found = {**describe(), "missing": lacking}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    gpu = found.get("gpu")
    if gpu:
        driver = found["nvidia_smi"].get("driver_version", "unknown")
        print(f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, driver {driver}, CUDA {gpu['cuda']}")
    print(
        ", ".join(
            f"{name} {found.get(name)}" for name in ("python", "torch", "triton", "transformers", "commit")
        )
    )
    if lacking:
        names = [name for name in lacking if "." not in name]
        print(f"missing: {'; '.join(lacking.values())}")
        if names:
            print(
                HOW.format(
                    names=" ".join(PINNED.get(name, name) for name in names),
                    python="{}.{}".format(*sys.version_info),
                )
            )
    if not gpu and not args.cpu:
        print("no GPU here: torch sees no CUDA device (--cpu runs the same parts on the processor)")
    return 0 if not lacking and (args.cpu or (gpu and gpu["computes"])) else 1


if __name__ == "__main__":
    sys.exit(main())
