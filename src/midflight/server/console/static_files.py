"""What the pages load: style, scripts and the vendored libraries, each under a name that changes with its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file as it is served."""

    content: bytes
    media_type: str
    digest: str


@cache
def files() -> dict[str, StaticFile]:
    """All files by their path below ``/static``. Only what is in this table is served: no path can lead elsewhere."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file() and path.suffix in _TYPES:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            found[path.relative_to(FOLDER).as_posix()] = StaticFile(content, _TYPES[path.suffix], digest)
    return found


def url(name: str) -> str | None:
    """Where a page finds a file; None when it is not there (a checkout in which the vendored files were not made)."""
    found = files().get(name)
    return f"/static/{name}?v={found.digest}" if found else None
