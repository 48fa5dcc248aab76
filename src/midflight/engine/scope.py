"""Looks a symbol up as the target's own dynamic linker would: the executable first, then its libraries in load order.

Source: System V gABI, "Shared Object Dependencies"; the order is read from the target's own link map (``DT_DEBUG``,
``struct r_debug``, glibc's <link.h>), so preloaded libraries count as they do for the program.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from midflight.engine.modules import Module, Modules
from midflight.errors import EngineError, ProcessError
from midflight.image.elf import ElfFile
from midflight.image.model import Symbol
from midflight.patch.manifest import Import
from midflight.process.model import Process

_DT_DEBUG = 21
_PT_DYNAMIC = 2
_LONGEST_CHAIN = 4096
_RT_CONSISTENT = 0


def _words(process: Process, address: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", process.read(address, 8 * count))


def _dynamic(process: Process, elf: ElfFile, bias: int) -> Iterator[tuple[int, int]]:
    for segment in elf.segments:
        if segment.type == _PT_DYNAMIC:
            data = process.read(bias + segment.address, segment.memory_size // 16 * 16)
            yield from struct.iter_unpack("<QQ", data)


def search_order(modules: Modules) -> list[Module]:
    """Modules in the order of the global scope; a static executable is alone.

    Raises:
        EngineError: the link map is damaged.
    """
    process = modules.process
    for module in modules.all:
        # Only the link editor's output for programs carries DT_DEBUG, so it tells the executable from its libraries.
        debug = next((v for tag, v in _dynamic(process, modules.image(module), module.bias) if tag == _DT_DEBUG), 0)
        if debug:
            return _link_map(modules, debug)
    return [m for m in modules.all if modules.image(m).kind == "executable"] or modules.all[:1]


def _link_map(modules: Modules, debug: int) -> list[Module]:
    process = modules.process
    order: list[Module] = []
    try:
        _, entry, _, state = _words(process, debug, 4)
        if state & 0xFFFFFFFF != _RT_CONSISTENT:
            raise EngineError(f"process {process.pid} is loading a library: try again")
        for _ in range(_LONGEST_CHAIN):
            if not entry:
                return order
            _, _, dynamic, following = _words(process, entry, 4)
            module = modules.at(dynamic)
            if module is not None and module not in order:
                order.append(module)
            entry = following
    except ProcessError as error:
        raise EngineError(f"process {process.pid}: its link map cannot be read ({error})") from error
    raise EngineError(f"process {process.pid}: its link map has no end")


class Scope:
    """Symbol look-up in one process. ``resolve_ifunc`` calls a resolver function in the target."""

    def __init__(self, modules: Modules, resolve_ifunc: Callable[[int], int]) -> None:
        self._modules = modules
        self._resolve_ifunc = resolve_ifunc
        self._order = search_order(modules)

    def find(self, name: str, version: str | None) -> tuple[Module, Symbol] | None:
        """The definition that the target's dynamic linker would choose."""
        for module in self._order:
            symbol = self._modules.image(module).dynamic_symbol(name, version)
            if symbol is not None and symbol.defined:
                return module, symbol
        return None

    def address(self, wanted: Import) -> int:
        """The address that the import is bound to in this process.

        Raises:
            EngineError: nobody defines it, or it cannot be bound.
        """
        found = self.find(wanted.name, wanted.version)
        full = wanted.name + (f"@{wanted.version}" if wanted.version else "")
        if found is None:
            raise EngineError(
                f"process {self._modules.process.pid}: no loaded library defines {full}"
                + (f", which {wanted.library} should" if wanted.library else "")
            )
        module, symbol = found
        if symbol.type == "tls":
            raise EngineError(f"{full} is thread-local in {module.path}: it cannot be imported by a hotpatch")
        if symbol.type != "ifunc":
            return symbol.value + (0 if symbol.absolute else module.bias)
        return self._bound_already(wanted.name, module) or self._resolve_ifunc(module.bias + symbol.value)

    def _bound_already(self, name: str, provider: Module) -> int | None:
        """An indirect function that some module's GOT has resolved: no code needs to run in the target."""
        for module in self._order:
            slot = self._modules.image(module).got_slots().get(name)
            if slot is None:
                continue
            value = _words(self._modules.process, module.bias + slot, 1)[0]
            if any(m.executable and m.start <= value < m.end for m in provider.mappings) and module is not provider:
                return int(value)
        return None
