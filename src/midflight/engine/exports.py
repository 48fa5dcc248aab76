"""Finds what a payload imports from the DLLs of a Windows process: by export, through forwarders and API sets.

Source: PE/COFF specification, "Export Address Table" (forwarders are "DLL.name" or "DLL.#ordinal"); Microsoft, "Windows
API sets" (the contract names ``api-ms-...`` and ``ext-ms-...`` stand for whichever DLL implements them).
"""

from __future__ import annotations

from midflight.engine.modules import Module
from midflight.engine.pemodules import PeModules
from midflight.errors import EngineError, ImageError
from midflight.patch.manifest import Import

_MOST_FORWARDS = 16
_CONTRACTS = ("api-ms-", "ext-ms-")
# Where the system's contracts are implemented, the usual ones first.
_HOSTS = ("kernelbase.dll", "kernel32.dll", "ntdll.dll", "ucrtbase.dll", "advapi32.dll", "sechost.dll", "combase.dll")


class Exports:
    """Look-up in one process; nothing is loaded that is not there."""

    def __init__(self, modules: PeModules) -> None:
        self._modules = modules
        self._known: dict[int, dict[str, tuple[int, str | None]]] = {}

    def address(self, wanted: Import) -> int:
        """The address of an import in this process.

        Raises:
            EngineError: its DLL is not loaded, or exports no such thing.
        """
        library, name = wanted.library or "", wanted.name
        for _ in range(_MOST_FORWARDS):
            found = self._find(library, name)
            if found is None:
                break
            module, rva, forward = found
            if forward is None:
                return module.bias + rva
            library, _, name = forward.rpartition(".")
        raise EngineError(
            f"process {self._modules.process.pid}: no loaded DLL exports {wanted.name}, which {wanted.library} should: "
            "restart the process with a fixed build"
        )

    def _find(self, library: str, name: str) -> tuple[Module, int, str | None] | None:
        base = library.lower()
        names = [base] if base.endswith((".dll", ".exe", ".drv")) else [base + ".dll", base]
        if base.startswith(_CONTRACTS):
            names += _HOSTS
        for one in names:
            module = self._modules.named(one)
            entry = self._exports(module).get(name) if module is not None else None
            if module is not None and entry is not None:
                return module, *entry
        return None

    def _exports(self, module: Module) -> dict[str, tuple[int, str | None]]:
        if module.bias not in self._known:
            image = self._modules.pe(module)
            table: dict[str, tuple[int, str | None]] = {}
            try:
                for export in image.exports if image is not None else ():
                    table[f"#{export.ordinal}"] = (export.rva, export.forward)
                    if export.name:
                        table[export.name] = (export.rva, export.forward)
            except ImageError as error:
                raise EngineError(f"{module.path}: its exports cannot be read ({error})") from error
            self._known[module.bias] = table
        return self._known[module.bias]
