"""What is installed beside penstock and would break it."""

from __future__ import annotations

from importlib import metadata

from penstock.errors import InstallationError


def refuse_clash() -> None:
    """Refuse to go on where another distribution owns a top-level package of ours.

    Hugging Face's distribution `kernels` brings a package `kernels`, and so does penstock: whichever was
    installed last has overwritten files of the other.

    Raises:
        InstallationError: says what to do.
    """
    try:
        version = metadata.version("kernels")
    except metadata.PackageNotFoundError:
        return
    raise InstallationError(
        f"the distribution `kernels` {version} (Hugging Face's) is installed; its package has the name of "
        "one of penstock's, and each overwrites the other's files. Run `pip uninstall kernels`, then "
        "`pip install --force-reinstall --no-deps penstock`; or give penstock an environment of its own."
    )
