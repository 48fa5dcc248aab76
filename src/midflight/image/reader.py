"""What the readers of all formats have in common: they are opened and closed, and find what is mapped at an address."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from midflight.errors import ImageError
from midflight.image.model import Segment
from midflight.image.source import FileSource, MemorySource, Source


class Reader:
    """Reads one file; also a context manager. Raises ImageError when it is not what the reader is for."""

    def __init__(self, data: bytes | bytearray | memoryview | mmap.mmap | Source, name: str = "image") -> None:
        self._source = data if isinstance(data, Source) else MemorySource(data, name)
        self.name = self._source.name

    @classmethod
    def open(cls, path: str | os.PathLike[str], name: str | None = None) -> Self:
        """Open a regular file (``name``: what messages call it). Raises ImageError when it is of another kind."""
        source = FileSource(path, name)
        try:
            return cls(source)
        except ImageError:
            source.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Mapped:
    """What a loader maps: pieces in the order of their addresses, which do not overlap."""

    def _map(self, loads: Sequence[Segment]) -> None:
        self.loads = tuple(loads)
        self._starts = [segment.address for segment in self.loads]

    def segment_at(self, vaddr: int) -> Segment | None:
        """The mapped piece whose memory holds ``vaddr``, or None."""
        at = bisect_right(self._starts, vaddr) - 1
        if at < 0:
            return None
        segment = self.loads[at]
        return segment if vaddr - segment.address < segment.memory_size else None

    def vaddr_to_offset(self, vaddr: int) -> int | None:
        """The file offset behind a virtual address; None when nothing in the file stands there (.bss, a hole)."""
        segment = self.segment_at(vaddr)
        if segment is None or vaddr - segment.address >= segment.file_size:
            return None
        return segment.offset + vaddr - segment.address
