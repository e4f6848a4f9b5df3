"""Libraries of other sources are not loaded, and one target that does not compile costs no other."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from kernels.cpu import make_op_set, native
from kernels.cpu.native import build


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are looked for and made, empty."""
    monkeypatch.setattr(build, "library", lambda target: tmp_path / f"native_{target}.so")
    return tmp_path


def test_a_library_of_other_sources_is_not_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for target in build.targets():
        (folder / f"native_{target}.so").write_bytes(b"\x7fELF penstock kernels 0123")
        assert not build.is_current(target)
    native.load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert native.load() is None
    finally:
        native.load.cache_clear()
    assert "plain torch computes" in caplog.text


def test_a_target_that_the_compiler_refuses_costs_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = folder / "c++"
    compiler.write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in\n'
        '-mavx512fp16) echo "unrecognized option $word" >&2; exit 1;;\n'
        '-DPENSTOCK_SOURCES=*) stamp="$word";;\n'
        "esac; done\n"
        'while [ "$1" != -o ]; do shift; done\n'
        'if [ -z "$stamp" ]; then cat stamp > "$2"; exit; fi\n'
        'echo "$stamp" > "$2"; cp "$2" "$2.s"; mv "$2.s" stamp\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(build, "targets", lambda: build.TARGETS)
    built, refused = build.build()
    assert sorted(path.name for path in built) == [
        f"native_{target}.so" for target in sorted(build.TARGETS) if target != "avx512_fp16"
    ]
    assert ["unrecognized option -mavx512fp16" in str(error) for error in refused] == [True]


def test_another_default_type_of_torch_changes_nothing() -> None:
    library = native.load()
    assert library is not None, "the C++ kernels are not built: make test builds them"
    ops = make_op_set(library)
    x, weight = torch.randn(3, 64), torch.ones(64)
    expected = ops.rms_norm(x, weight, 1e-6)
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = ops.rms_norm(x, weight, 1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)
