"""Microsoft's own hot patch metadata, as an image carries it that is a hotpatch of Windows: for reading only.

IMAGE_LOAD_CONFIG_DIRECTORY64.HotPatchTableOffset leads to an IMAGE_HOT_PATCH_INFO, which lists IMAGE_HOT_PATCH_BASE
structures, one for each base image; offsets in them count from the IMAGE_HOT_PATCH_INFO. Source: winnt.h of the Windows
SDK (10.0.26100), the only place where these structures stand.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midflight.image.pe import PeFile

_INFO = struct.Struct("<IIIII")
_BASE = struct.Struct("<IIIIIII")
_MOST_BASES = 4096
_HASHES = 52
"""Bytes of IMAGE_HOT_PATCH_HASHES: a SHA-256 and a SHA-1."""

FLAGS = (
    (0x1, "obligatory"),
    (0x2, "can roll back"),
    (0x4, "x86"),
    (0x8, "ARM64"),
    (0x10, "x64"),
)
"""IMAGE_HOT_PATCH_BASE_*: bits of ``flags`` by meaning."""


@dataclass(frozen=True, slots=True)
class HotPatchBase:
    """One base image that the hotpatch is for."""

    sequence: int
    flags: int
    timestamp: int
    """OriginalTimeDateStamp of the base image …"""
    checksum: int
    """… and its OriginalCheckSum: together its identity."""
    sha256: str | None
    """Of the base image, where CodeIntegrityInfo has it."""
    patches: int
    """RVA-like offset of the patch table in the hot patch information; 0: none."""

    @property
    def identity(self) -> str:
        """The identity in Midflight's words."""
        return f"pe-{self.checksum:08x}-{self.timestamp:08x}"

    @property
    def meanings(self) -> tuple[str, ...]:
        """The flags in words; unknown bits as a number."""
        known = [text for bit, text in FLAGS if self.flags & bit]
        rest = self.flags & ~sum(bit for bit, _ in FLAGS)
        return (*known, *([f"{rest:#x}"] if rest else []))


@dataclass(frozen=True, slots=True)
class HotPatchInfo:
    """IMAGE_HOT_PATCH_INFO."""

    version: int
    size: int
    sequence: int
    bases: tuple[HotPatchBase, ...]
    extra_patch_size: int
    """In version 3 and later."""


def read_hotpatch_info(image: PeFile) -> HotPatchInfo | None:
    """What the load configuration leads to; None when it leads to nothing.

    Raises:
        ImageError: it leads to what cannot be such a structure.
    """
    config = image.load_config
    if config is None or not config.hotpatch_offset:
        return None
    at = config.hotpatch_offset
    version, size, sequence, list_at, count = _INFO.unpack(image.read_table(at, _INFO.size, "IMAGE_HOT_PATCH_INFO"))
    if count > _MOST_BASES:
        raise image.bad(f"IMAGE_HOT_PATCH_INFO names {count} base images")
    offsets = struct.unpack(f"<{count}I", image.read_table(at + list_at, 4 * count, "the list of base images"))
    extra = 0
    if version >= 3:
        (extra,) = struct.unpack("<I", image.read_table(at + 24, 4, "IMAGE_HOT_PATCH_INFO"))
    return HotPatchInfo(version, size, sequence, tuple(_base(image, at, offset) for offset in offsets), extra)


def _base(image: PeFile, start: int, offset: int) -> HotPatchBase:
    raw = image.read_table(start + offset, _BASE.size, "IMAGE_HOT_PATCH_BASE")
    sequence, flags, timestamp, checksum, integrity_at, integrity_size, patches = _BASE.unpack(raw)
    sha256 = None
    if integrity_at and integrity_size >= _HASHES:
        sha256 = image.read_table(start + integrity_at, 32, "IMAGE_HOT_PATCH_HASHES").hex()
    return HotPatchBase(sequence, flags, timestamp, checksum, sha256, patches)
