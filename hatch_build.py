"""Compiles the C++ kernels when penstock is installed. Without a compiler it is installed all the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("kernels/cpu/native")


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]  # its parameter has no public type
    """Builds the libraries beside their sources, and puts them into wheels."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel, editable or not, is put together."""
        if self.target_name != "wheel":
            return
        spec = importlib.util.spec_from_file_location("native_build", Path(self.root, NATIVE, "build.py"))
        assert spec is not None
        assert spec.loader is not None
        native_build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native_build)
        try:
            libraries, refused = native_build.build()
        except native_build.CompileError as error:
            self.app.display_warning(f"penstock is installed without its C++ kernels: {error}")
            return
        for error in refused:
            self.app.display_warning(f"the C++ kernels for one kind of processor are missing: {error}")
        build_data["artifacts"] += [str(NATIVE / library.name) for library in libraries]
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
