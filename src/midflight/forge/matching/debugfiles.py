"""Finds the external debug file of an image on this machine, for its symbol table.

That of a PE image is its PDB, which lies beside the image under the name that the image gives, or is named by the user.
Of an ELF image:

By build-id alone, below /usr/lib/debug (GDB manual, "Debugging Information in Separate Files") and in the folders where
debuginfod clients keep what they fetched (debuginfod_find_debuginfo(3)). Nothing is fetched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from midflight.errors import ImageError
from midflight.image.elf import ElfFile
from midflight.image.pdb import PdbFile
from midflight.image.pe import PeFile

SYSTEM = Path("/usr/lib/debug")


def debug_folders(environment: Mapping[str, str]) -> Sequence[Path]:
    """Cache folders of debuginfod clients."""
    home = Path(environment.get("HOME") or Path.home())
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    named = environment.get("DEBUGINFOD_CACHE_PATH")
    folders = [Path(named)] if named else []
    return [*folders, cache / "debuginfod_client", home / ".debuginfod_client_cache"]


def _paths(build_id: str, environment: Mapping[str, str], system: Path) -> Iterator[Path]:
    yield system / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    for folder in debug_folders(environment):
        yield folder / build_id / "debuginfo"


def open_debug_file(
    build_id: str | None, environment: Mapping[str, str] | None = None, system: Path = SYSTEM
) -> ElfFile | None:
    """The debug file of the image with this build-id, open; None when there is none with a symbol table.

    A file that says of itself that it has another build-id is passed over.
    """
    if not build_id:
        return None
    for path in _paths(build_id, os.environ if environment is None else environment, system):
        if not path.is_file():
            continue
        with contextlib.suppress(ImageError, OSError):
            found = ElfFile.open(path)
            if found.build_id == build_id and len(found.symbols()) > 1:
                return found
            found.close()
    return None


def open_pdb(image: PeFile, path: Path, named: Path | None = None) -> PdbFile | None:
    """The PDB of the image that was read from ``path``, open; None when it needs none (it has a symbol table), or there
    is none. One that lies beside the image and belongs to another build is passed over.

    Raises:
        ImageError: the PDB that was ``named`` is malformed, or belongs to another build.
    """
    if named is not None:
        found = _own(PdbFile.open(named), image)
        if found is None:
            raise ImageError(f"{named}: not the PDB of {image.name}, but of another build; give its own")
        return found
    if image.codeview is None or len(image.symbols()) > 1:
        return None
    with contextlib.suppress(ImageError):
        return _own(PdbFile.open(path.resolve().parent / image.codeview.name), image)
    return None


def _own(pdb: PdbFile, image: PeFile) -> PdbFile | None:
    """The PDB, or None (and it is closed) when it belongs to another build or cannot be read."""
    own = False
    try:
        own = pdb.belongs_to(image) and len(pdb.symbols()) > 1
    finally:
        if not own:
            pdb.close()
    return pdb if own else None
