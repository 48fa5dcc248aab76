"""Makes hotpatches for Windows programs without the forge: the new code is linked as a DLL by MinGW, and that DLL,
mapped in one piece, is the payload. So it has all that a payload can have: calls into the program, imports, relocated
pointers, exception tables. Runs on Linux.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midflight.image.pe import EXCEPTION, PeFile
from midflight.image.petables import base_relocations
from midflight.patch.hotpatch import write_hotpatch
from midflight.patch.manifest import (
    PE_SCHEMA,
    CodeRange,
    Entry,
    EntryKind,
    Function,
    Import,
    Manifest,
    PayloadSymbol,
    Policy,
    Relocation,
    Segment,
    Target,
    Unwind,
)
from midflight.patch.signature import Signer

PAGE = 4096


@dataclass(frozen=True)
class Recipe:
    """One hotpatch: which functions of which image become those of which source."""

    name: str
    image: str
    source: str
    functions: Sequence[str]
    kind: EntryKind = "near"
    sequence: int = 1
    series: str = ""
    policy: Policy = "strict"
    escapes: bool = False
    compiler: str = "x86_64-w64-mingw32-gcc"
    flags: Sequence[str] = field(default=("-nostdlib",))


def _link(recipe: Recipe, source: Path, folder: Path, library: Path) -> Path:
    """The DLL with the new code; what it does not define it imports from the image, or from the C++ runtime."""
    out = folder / f"{recipe.name}.payload.dll"
    command = [recipe.compiler, "-O2", "-shared", "-nostartfiles", "-Wl,-e,0", "-Wl,--image-base,0x180000000"]
    command += ["-Wl,--exclude-all-symbols", "-o", str(out), str(source), str(library), *recipe.flags]
    subprocess.run(command, check=True)
    return out


def _extent(image: PeFile, address: int) -> tuple[int, int]:
    for item in image.runtime_functions:
        if item.begin <= address < item.end:
            return item.begin, item.end - item.begin
    raise AssertionError(f"no function at {address:#x}")


def _address(image: PeFile, name: str) -> int:
    (symbol,) = image.symbols_by_name[name]
    return symbol.value


def _function(recipe: Recipe, name: str, old: PeFile, new: PeFile) -> Function:
    at, size = _extent(old, _address(old, name))
    code = CodeRange(at, size, hashlib.sha256(old.read_vaddr(at, size)).hexdigest())
    if recipe.kind == "near":
        entry = Entry("near", at, old.read_vaddr(at, 5))
    elif recipe.kind == "hotpatch":
        entry = Entry("hotpatch", at, old.read_vaddr(at, 2), at - 5, old.read_vaddr(at - 5, 5))
    else:
        entry = Entry("short", at, old.read_vaddr(at, 2), at + size, old.read_vaddr(at + size, 5))
    new_at, new_size = _extent(new, _address(new, name))
    return Function(name, (code,), entry, new_at, new_size)


def _payload(new: PeFile) -> tuple[bytes, tuple[Segment, ...]]:
    """The DLL as it is mapped: code (with a first page of nothing in the place of its headers), then the rest."""
    code = next(s for s in new.segments if s.executable)
    others = [s for s in new.segments if s.address > code.address]
    start = min(s.address for s in others)
    end = max(s.address + s.memory_size for s in others)
    image = bytearray(b"\xcc" * code.address + new.read_vaddr(code.address, code.file_size))
    image = image.ljust(start, b"\xcc")
    rest = bytearray(end - start)
    for s in others:
        rest[s.address - start : s.address - start + s.memory_size] = new.read_vaddr(s.address, s.memory_size)
    segments = (Segment("code", 0, start, 0, start), Segment("data", start, len(rest), start, len(rest)))
    return bytes(image + rest), segments


def _relocations(new: PeFile) -> tuple[tuple[Relocation, ...], tuple[Import, ...]]:
    imports: list[Import] = []
    relocations = []
    for item in new.imports:
        relocations.append(Relocation(item.slot, "import", "abs64", len(imports), 0))
        imports.append(Import(item.name, None, item.library, "func"))
    slots = {item.slot: index for index, item in enumerate(new.imports)}
    known = set(slots)
    for slot, at, size in _runtime_relocations(new):
        # GNU ld's own kind: what stands there counts from the slot, and is to count from what the slot leads to.
        assert size == 64 and slot in slots
        addend = int.from_bytes(new.read_vaddr(at, 8), "little") - (new.image_base + slot)
        relocations.append(Relocation(at, "import", "abs64", slots[slot], addend))
        known.add(at)
    for at, value in base_relocations(new):
        if at not in known:
            relocations.append(Relocation(at, "payload", "abs64", value - new.image_base, 0))
    return tuple(sorted(relocations, key=lambda r: r.offset)), tuple(imports)


def _runtime_relocations(new: PeFile) -> list[tuple[int, int, int]]:
    """(slot, place, bits) of what MinGW's start-up code would relocate (pseudo-reloc.c, version 2 of its list)."""
    start, end = (_address(new, f"__RUNTIME_PSEUDO_RELOC_LIST{part}__") for part in ("", "_END"))
    if end - start <= 12:
        return []
    data = new.read_vaddr(start, end - start)
    assert struct.unpack_from("<III", data) == (0, 0, 1)
    return [(slot, at, flags & 0xFF) for slot, at, flags in struct.iter_unpack("<III", data[12:])]


def make(recipe: Recipe, sources: Path, folder: Path, signer: Signer) -> Path:
    """Build one hotpatch file below ``folder``, where its image is; returns its path."""
    library = folder / f"{recipe.image}.a"
    built = _link(recipe, sources / recipe.source, folder, library)
    with PeFile.open(folder / recipe.image) as old, PeFile.open(built) as new:
        assert old.build_id is not None
        payload, segments = _payload(new)
        relocations, imports = _relocations(new)
        table, size = new.directory(EXCEPTION)
        functions = tuple(_function(recipe, name, old, new) for name in recipe.functions)
        name = f"payload/{old.build_id}.bin"
        target = Target(
            image_name=recipe.image,
            build_id=old.build_id,
            machine="x86_64",
            payload=name,
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            payload_size=len(payload),
            segments=segments,
            functions=functions,
            relocations=relocations,
            imports=imports,
            symbols=tuple(PayloadSymbol(f.name, f.new_offset, f.new_size, "func") for f in functions),
            unwind=Unwind(table, size, True),
            policy=recipe.policy,
            policy_reason="a test" if recipe.policy == "entry" else None,
            hooks=(),
            overrides=(),
            escapes=recipe.escapes,
        )
    manifest = Manifest(
        PE_SCHEMA, recipe.series or recipe.name, recipe.sequence, "made by hand", (), "2026-01-01T00:00:00Z", "test",
        "MinGW", "0" * 64, (target,),
    )  # fmt: skip
    out = folder / f"{recipe.name}.hotpatch"
    write_hotpatch(out, manifest, {name: payload}, signer)
    return out
