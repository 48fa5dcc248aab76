"""What should stand in the code of a PE image: its file, relocated as the loader relocates it."""

from __future__ import annotations

from types import TracebackType

from midflight.errors import ImageError
from midflight.image.pe import PeFile
from midflight.image.petables import base_relocations


class DiskImage:
    """The file behind an image that is mapped at ``base``. A context manager.

    Raises:
        ImageError, OSError: it cannot be read.
    """

    def __init__(self, path: str, base: int) -> None:
        self._file = PeFile.open(path)
        self._distance = base - self._file.image_base
        self._pointers = dict(base_relocations(self._file)) if self._distance else {}

    @property
    def build_id(self) -> str | None:
        """Its identity."""
        return self._file.build_id

    def read(self, rva: int, size: int) -> bytes:
        """``size`` bytes at an RVA, as the loader would have made them; what no section has is zero."""
        data = bytearray()
        while len(data) < size:
            data += self._piece(rva + len(data), size - len(data))
        for at, value in self._pointers.items():
            # A pointer may lie across the beginning or the end of what is asked for.
            if rva - 8 < at < rva + size:
                new = (value + self._distance & (1 << 64) - 1).to_bytes(8, "little")
                low, high = max(at, rva), min(at + 8, rva + size)
                data[low - rva : high - rva] = new[low - at : high - at]
        return bytes(data)

    def _piece(self, rva: int, size: int) -> bytes:
        segment = self._file.segment_at(rva)
        if segment is None:
            following = [s.address for s in self._file.segments if s.address > rva]
            return bytes(min([size, *(address - rva for address in following)]))
        return self._file.read_vaddr(rva, min(size, segment.address + segment.memory_size - rva))

    def __enter__(self) -> DiskImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def open_disk_image(path: str, base: int, mapped: str | None) -> DiskImage:
    """The file of an image that is mapped at ``base`` and has the identity ``mapped``.

    Raises:
        ImageError: it is not the file that was mapped.
        OSError: it cannot be opened.
    """
    image = DiskImage(path, base)
    if image.build_id != mapped:
        image.__exit__(None, None, None)
        raise ImageError(f"the file is {image.build_id} now, and {mapped} was mapped: it was replaced")
    return image
