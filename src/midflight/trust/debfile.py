"""Reads what a Debian package is, without dpkg (deb(5): an ar archive with a compressed tar of control files)."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import InputError

MAX_CONTROL = 4 << 20
_MAGIC = b"!<arch>\n"


@dataclass(frozen=True, slots=True)
class Control:
    """The fields of the control file that say what a package is."""

    package: str
    version: str
    architecture: str


def read_control(path: Path) -> Control:
    """What a package is, by its own control file.

    Raises:
        InputError: it is no Debian package, or its control files are compressed in a way that is not read here.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise InputError(f"{path} is neither a hotpatch nor a .deb; give --name, --version and --architecture")
            name, content = _control_member(file, path)
        text = _control_text(name, content, path)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}; get it again") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from None
    fields = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            fields[key.lower()] = value.strip()
    try:
        return Control(fields["package"], fields["version"], fields["architecture"])
    except KeyError as error:
        raise InputError(f"{path} does not say its {error.args[0]}; it is no proper .deb") from None


def _control_member(file: io.BufferedReader, path: Path) -> tuple[str, bytes]:
    """The member ``control.tar.*``, which is among the first three (deb(5))."""
    for _ in range(3):
        header = file.read(60)
        if len(header) < 60 or header[58:] != b"`\n":
            break
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("control.tar"):
            if size > MAX_CONTROL:
                raise InputError(f"{path} has {size} bytes of control files, at most {MAX_CONTROL} are read")
            return name, file.read(size)
        file.seek(size + size % 2, io.SEEK_CUR)
    raise InputError(f"{path} has no control files; it is no proper .deb")


def _control_text(name: str, content: bytes, path: Path) -> str:
    if name.endswith(".zst"):
        raise InputError(f"{path} is compressed with zstd; give --name, --version and --architecture")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
        for member in archive:
            if member.name.removeprefix("./") == "control" and member.isfile() and member.size <= MAX_CONTROL:
                extracted = archive.extractfile(member)
                assert extracted is not None
                return extracted.read().decode("utf-8", "replace")
    raise InputError(f"{path} has no control file; it is no proper .deb")
