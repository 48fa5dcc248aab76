"""Whether a Windows program switches stacks by itself: fibers (Microsoft's API reference, CreateFiber, SwitchToFiber).

A fiber that waits to be switched to has its stack in memory that no thread is on; ``coroutines`` searches it.
"""

from __future__ import annotations

from midflight.engine.pemodules import PeModules
from midflight.errors import ImageError

_SWITCH = ("SwitchToFiber", "ConvertThreadToFiber", "ConvertThreadToFiberEx", "CreateFiber", "CreateFiberEx")
_SYSTEM = "\\windows\\"


def runtime(modules: PeModules) -> tuple[str, tuple[()]] | None:
    """What :func:`midflight.engine.coroutines.runtime` says, for a Windows process. The system's own DLLs offer fibers
    and do not count; a program that looks the functions up by itself (GetProcAddress) is not seen."""
    for module in modules.all:
        if _SYSTEM in module.path.lower():
            continue
        image = modules.pe(module)
        try:
            if image is not None and any(item.name in _SWITCH for item in image.imports):
                return "fibers", ()
        except ImageError:
            continue
    return None
