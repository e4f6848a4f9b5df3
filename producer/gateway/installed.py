"""Whether what the gateway needs is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from penstock.errors import InstallationError

NEEDED: Final = ("litestar", "uvicorn", "httptools", "httpx", "fsspec", "jinja2", "prometheus_client")


def require_gateway() -> None:
    """Make sure of it.

    Raises:
        InstallationError: something is missing; says how to get it.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InstallationError(
            f"the gateway is not installed ({', '.join(missing)} missing). "
            "Install it with: pip install 'penstock[gateway]'"
        )
