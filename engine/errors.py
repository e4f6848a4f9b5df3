"""Everything that the engine refuses, as one tree.

    EngineError
    ├── ConfigError                the engine's settings contradict each other or the model
    └── ModelError                 the model cannot be run
        ├── ModelNotFound          no such folder, no such hub id, no access, no network
        ├── UnsupportedModel       an architecture or a variant that is not run
        │   └── NoSpec             an architecture that no spec describes: something else may run it
        └── WeightsError           tensors missing, superfluous, of the wrong shape, or in another format

A request that cannot run is not an error here: it ends in an `Output` with `error` set.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of what the engine raises on purpose; its text is meant for a person."""


class ConfigError(EngineError):
    """Settings that contradict each other or the model."""


class ModelError(EngineError):
    """A model that cannot be run."""


class ModelNotFound(ModelError):
    """Neither a folder nor something that the hub hands out to this user."""


class UnsupportedModel(ModelError):
    """An architecture, or a variant of one, that is not run."""


class NoSpec(UnsupportedModel):
    """An architecture that no spec describes: something other than the native decoder may run it."""


class WeightsError(ModelError):
    """Weight files that do not hold what the spec asks for."""
