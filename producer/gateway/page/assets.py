"""Files that the pages name: styles, scripts and the icon. Open to all, as the page that asks for a key is.

htmx, its extension for server-sent events and idiomorph (0BSD) are as their authors publish them, see
assets/VENDORED.md.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from litestar import Response, get
from litestar.params import FromPath

from producer.gateway.access import PUBLIC
from producer.gateway.errors import NotFound

_FOLDER: Final = Path(__file__).parent / "assets"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES: Final = {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}
_DIGESTS: Final = {name: hashlib.sha256(data).hexdigest()[:12] for name, data in _FILES.items()}


def asset_url(name: str) -> str:
    """Where a file is, by a name that changes with it, so that browsers may keep it for ever."""
    return f"/assets/{_DIGESTS[name]}/{name}"


@get("/assets/{digest:str}/{name:str}", opt=PUBLIC, include_in_schema=False)
async def asset(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    """One of them."""
    if _DIGESTS.get(name) != digest:
        raise NotFound(f"there is no file {name[:80]!r} here", code="not_found")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(_FILES[name], media_type=_TYPES[Path(name).suffix], headers=headers)
