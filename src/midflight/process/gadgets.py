"""Pieces of the target's own code that an injected call needs: ``syscall; ret``, rt_sigreturn, and a result store.

They are looked for in the executable file mappings once per file (by device, inode and size), and proven again in the
target's memory right before use.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from midflight.process import ptrace as pt
from midflight.process.model import Mapping

SYSCALL_RET = b"\x0f\x05\xc3"
_RESTORER = re.compile(rb"(?:\x48\xc7\xc0\x0f\x00\x00\x00|\xb8\x0f\x00\x00\x00)\x0f\x05")
_RESTORER_LENGTH = 9
# mov %rax, disp(%rbx | %rbp); pops; ret: a function returns into it, and its result is kept in memory of our choice.
_STORE = re.compile(rb"\x48\x89(?:\x03|[\x43\x45].)(?:[\x5b\x5d]|\x41[\x5c-\x5f])+\xc3", re.S)
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Store:
    """A sequence that stores rax at ``displacement`` from ``base``, pops ``pops`` words and returns."""

    address: int
    code: bytes
    base: int
    displacement: int
    pops: int


@dataclass(frozen=True, slots=True)
class Found:
    """What one file mapping has, as offsets from its start."""

    syscalls: tuple[int, ...]
    restorers: tuple[tuple[int, bytes], ...]
    stores: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Gadgets:
    """Addresses in one target."""

    syscall_ret: int | None
    restorer: tuple[int, bytes] | None
    store: Store | None
    restorers: tuple[int, ...]


_cache: OrderedDict[tuple[tuple[int, int], int, int, int], Found] = OrderedDict()
_CACHE_SIZE = 2048


def _search(mapping: Mapping, read: Callable[[int, int], bytes]) -> Found:
    syscalls: list[int] = []
    restorers: list[tuple[int, bytes]] = []
    stores: list[tuple[int, bytes]] = []
    overlap = 32
    for start in range(mapping.start, mapping.end, _CHUNK):
        data = read(start, min(_CHUNK + overlap, mapping.end - start))
        base = start - mapping.start
        if len(syscalls) < 4:
            at = data.find(SYSCALL_RET)
            if at >= 0:
                syscalls.append(base + at)
        restorers += [(base + m.start(), m.group()) for m in _RESTORER.finditer(data) if m.start() < _CHUNK]
        if len(stores) < 4:
            stores += [(base + m.start(), m.group()) for m in _STORE.finditer(data)][:4]
    return Found(tuple(syscalls), tuple(restorers), tuple(stores))


def _decode_store(address: int, code: bytes) -> Store:
    modrm = code[2]
    displacement = 0
    at = 3
    if modrm & 0xC0:
        displacement = code[3] - 256 if code[3] > 127 else code[3]
        at = 4
    pops = sum(1 for byte in code[at:-1] if byte != 0x41)
    return Store(address, code, pt.RBX if modrm & 7 == 3 else pt.RBP, displacement, pops)


def find(mappings: Iterable[Mapping], read: Callable[[int, int], bytes]) -> Gadgets:
    """Find the pieces in a target; ``read(address, size)`` reads its memory. Parts that no file has are None."""
    syscall_ret: int | None = None
    restorer: tuple[int, bytes] | None = None
    store: Store | None = None
    every: list[int] = []
    candidates = [m for m in mappings if m.executable and m.readable and m.inode]
    candidates.sort(key=lambda m: (not m.path.rpartition("/")[2].startswith("libc"), m.start))
    for mapping in candidates:
        key = (mapping.device, mapping.inode, mapping.offset, mapping.end - mapping.start)
        found = _cache.get(key)
        if found is None:
            found = _cache[key] = _search(mapping, read)
            while len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
        if syscall_ret is None:
            for offset in found.syscalls:
                if read(mapping.start + offset, 3) == SYSCALL_RET:
                    syscall_ret = mapping.start + offset
                    break
        for offset, code in found.restorers:
            every.append(mapping.start + offset)
            if restorer is None and read(mapping.start + offset, len(code)) == code:
                restorer = (mapping.start + offset, code)
        if store is None:
            for offset, code in found.stores:
                if read(mapping.start + offset, len(code)) == code:
                    store = _decode_store(mapping.start + offset, code)
                    break
    return Gadgets(syscall_ret, restorer, store, tuple(every))
