"""Errors of the programs, added to the tree of `penstock.errors`.

PenstockError
├── UsageError                     something that the caller named can't be used; the message says what would
├── RunError                       a dataset run cannot go on; its output is kept
└── ServerError
    ├── NoServer                   no server is named and none runs on the data folder
    └── EmbeddedServerError        the embedded server is not installed, or does not start
"""

from __future__ import annotations

from penstock.errors import PenstockError, ServerError


class UsageError(PenstockError):
    """Something that the caller named can't be used: a file, a folder, a combination of flags."""


class RunError(PenstockError):
    """A dataset run cannot go on. What it has written is kept."""


class NoServer(ServerError):
    """No server is named, and none runs on the data folder."""


class EmbeddedServerError(ServerError):
    """The embedded server is not installed, or does not start."""
