"""Finds stacks that no thread owns: coroutines that wait to be resumed, possibly in code that is to be replaced.

The stack check sees threads. A program that switches stacks by itself keeps the others in memory like any data, so they
are looked for there, outside the stop, and only where the program has a runtime that makes them:

ucontext    swapcontext(3) leaves a structure with every register that a caller may rely on (sys/ucontext.h), and the
            return address both in it and below the saved stack pointer: such a stack is found and unwound precisely
others      boost.context, libco, libaco, and whoever combines ucontext with setjmp, have no common structure: any word
            in memory outside the threads' stacks that is an address inside the replaced code counts, but for its
            beginning: tables of callbacks hold that, and who starts there is led to the new code
fibers      those of Windows: as the others (``fibers``)

A coroutine that enters replaced code between the search and the stop goes on in the old version, which stays in memory.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence

from midflight.engine import fibers
from midflight.engine.modules import Module, Modules
from midflight.engine.pemodules import PeModules
from midflight.engine.stackcheck import StackCheck
from midflight.errors import EngineError, ProcessError, ProcessGone
from midflight.image.elf import ElfFile
from midflight.process.model import RSP, Mapping, Process, Stack, Thread

_SWITCH = (b"swapcontext\0", b"setcontext\0")
_JUMPS = (b"setjmp\0",)
_OTHERS = {
    b"jump_fcontext\0": "boost.context",
    b"ontop_fcontext\0": "boost.context",
    b"co_switch\0": "libco",
    b"aco_resume\0": "libaco",
    b"acosw\0": "libaco",
    b"coro_transfer\0": "libcoro",
}
_NOT_USERS = ("libc.so", "ld-linux", "libc.musl")
# OpenSSL can switch stacks, and does so only for a program that asks for asynchronous jobs (ASYNC_start_job(3)).
_OPENSSL = ("libcrypto.so", "libssl.so")
_ASYNC = (b"ASYNC_start_job\0", b"SSL_waiting_for_async\0", b"SSL_get_all_async_fds\0", b"SSL_get_changed_async_fds\0")
# ucontext_t of x86-64 (sys/ucontext.h): its stack, and in the order of user_regs_struct's sigcontext the registers.
_STACK, _GREGS = 16, 40
_DWARF_ORDER = (13, 12, 14, 11, 9, 8, 10, 15, 0, 1, 2, 3, 4, 5, 6, 7, 16)
_CONTEXT = struct.Struct("<17Q")
_RSP, _RIP = _GREGS + 15 * 8, _GREGS + 16 * 8
_CHUNK = 4 << 20
_BUDGET = 512 << 20
_LONGEST_STACK = 8 << 20
_PAUSES = (0.002, 0.05)


def _names(elf: ElfFile) -> bytes:
    """The names that an image imports or exports (of a static program: all), each ended by a zero byte."""
    section = elf.section(".dynstr" if elf.is_dynamic else ".strtab")
    if section is not None:
        return elf.section_data(section)
    return b"".join(s.name.encode("utf-8", "replace") + b"\0" for s in elf.dynamic_symbols())


def runtime(modules: Modules) -> tuple[str, tuple[Module, ...]] | None:
    """The coroutine runtime of a process and, for ucontext alone, the modules that switch with it; None: it has
    none."""
    if isinstance(modules, PeModules):
        return fibers.runtime(modules)
    users: list[Module] = []
    jumps = False
    images = [(module, modules.image(module)) for module in modules.all]
    known = [(module, _names(elf), elf.soname or "") for module, elf in images]
    asynchronous = any(s in names for _, names, soname in known if not soname.startswith(_OPENSSL) for s in _ASYNC)
    for module, names, soname in known:
        if soname.startswith(_NOT_USERS) or (soname.startswith(_OPENSSL) and not asynchronous):
            continue
        for symbol, name in _OTHERS.items():
            if symbol in names:
                return name, ()
        if any(symbol in names for symbol in _SWITCH):
            users.append(module)
            jumps = jumps or any(symbol in names for symbol in _JUMPS)
    if not users:
        return None
    return ("ucontext with setjmp", ()) if jumps else ("ucontext", tuple(users))


def _memory(process: Process, skip: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """(address, contents) of all private writable memory but the mappings that hold an address in ``skip``.

    Raises:
        EngineError: it is too much to be searched.
    """
    wanted = [
        m for m in process.maps()
        if m.readable and m.writable and m.private and not any(m.start <= at < m.end for at in skip)
    ]  # fmt: skip
    if sum(m.end - m.start for m in wanted) > _BUDGET:
        raise EngineError(
            f"process {process.pid} uses coroutines, and has too much memory to look for their stacks: a hotpatch with "
            "policy entry, or a restart with a fixed build, is needed"
        )
    for m in wanted:
        # Chunks overlap, so that no structure is cut.
        for at in range(m.start, m.end, _CHUNK):
            try:
                yield at, process.read(at, min(_CHUNK + 1024, m.end - at))
            except ProcessGone:
                raise
            except ProcessError:
                continue  # a mapping that has just gone


def parked(process: Process, modules: Modules, users: Sequence[Module]) -> list[Thread]:
    """Stacks that swapcontext(3) left, as threads with number 0. Those that were resumed since may be among them."""
    found: dict[int, Thread] = {}
    maps = process.maps()
    # All return addresses into 16 MiB of code share their upper five bytes.
    blocks = {block for m in users for block in range(m.start >> 24, (m.end - 1 >> 24) + 1)}
    patterns = [struct.pack("<Q", block << 24)[3:] for block in blocks]
    for base, data in _memory(process, ()):
        for pattern in patterns:
            at = data.find(pattern)
            while at != -1:
                context = at - 3 - _RIP
                if (base + context) % 8 == 0 and context >= 0 and base + context not in found:
                    thread = _context(process, maps, data[context : context + _RIP + 8])
                    if thread is not None:
                        found[base + context] = thread
                at = data.find(pattern, at + 1)
    return list(found.values())


def _context(process: Process, maps: Sequence[Mapping], raw: bytes) -> Thread | None:
    """The stack of one ucontext_t, if it is one."""
    pointer, pc = struct.unpack_from("<QQ", raw, _RSP)
    home = next((m for m in maps if m.start <= pointer - 8 and pointer < m.end), None)
    if home is None or not home.writable:
        return None
    try:
        if int.from_bytes(process.read(pointer - 8, 8), "little") != pc:
            return None
        lowest, _, size = struct.unpack_from("<QQQ", raw, _STACK)
        end = lowest + size if lowest <= pointer < lowest + size <= home.end else home.end
        # No red zone: it waits in a call.
        data = process.read(pointer, min(end - pointer, _LONGEST_STACK))
    except ProcessGone:
        raise
    except ProcessError:
        return None
    values = _CONTEXT.unpack_from(raw, _GREGS)
    registers = tuple(values[index] for index in _DWARF_ORDER)
    return Thread(0, registers, [Stack(pointer, data)])


def _in_the_way(process: Process, modules: Modules, check: StackCheck) -> tuple[str, str] | None:
    """(runtime, function) of a parked stack that leads into what ``check`` guards."""
    found = runtime(modules)
    if found is None:
        return None
    name, users = found
    if users:
        busy = check.busy(parked(process, modules, users))
        return (name, busy[0].function) if busy else None
    with process.stop(1.0) as stopped:
        pointers = [thread.registers[RSP] for thread in stopped.threads]
        stopped.resume()
    heaps = [m for m in process.maps() if m.path == "[heap]"]
    skip = [at for at in pointers if not any(m.start <= at < m.end for m in heaps)]
    for start, data in _memory(process, skip):
        guarded = check.entered(start, data)
        if guarded is not None:
            return name, guarded.function
    return None


def wait_until_clear(process: Process, modules: Modules, check: StackCheck, patience: float) -> None:
    """Wait until no parked coroutine stands in the code that ``check`` guards.

    Raises:
        EngineError: one does, until ``patience`` seconds have passed.
    """
    deadline = time.monotonic() + patience
    pause, longest = _PAUSES
    while True:
        found = _in_the_way(process, modules, check)
        if found is None:
            return
        if time.monotonic() >= deadline:
            raise EngineError(
                f"process {process.pid} was busy for {patience:g} s: a coroutine ({found[0]}) that no thread runs at "
                f"the moment waits in {found[1]}, or did; try again when it is idle, give more time (--timeout), or "
                "restart it with a fixed build"
            )
        time.sleep(pause)
        pause = min(pause * 2, longest)
