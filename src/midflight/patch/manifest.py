"""The manifest: what a hotpatch changes, in which baselines, and how its payload is bound. Plain, frozen data.

Addresses named ``vaddr`` are link-time virtual addresses of the baseline image; the engine adds the load bias. Those of
a PE image are RVAs: its image base is taken as 0, so that the bias is the address of the module.
``offset`` means an offset in the payload's own address space, which starts at 0 and is mapped in one piece.
All sizes are in bytes. Byte strings stand in JSON as lower-case hex.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 1
REVIEWED_SCHEMA = 2
"""The schema of a manifest that names its reviewer; all others keep the first one, which every reader knows."""
PE_SCHEMA = 3
"""The schema of a manifest whose targets are PE images; readers that know ELF alone refuse it by its number."""

SegmentKind = Literal["code", "rodata", "data"]
RelocationKind = Literal["payload", "image", "import", "slot"]
RelocationForm = Literal["abs64", "abs32", "abs32s", "pc32", "rva32"]
EntryKind = Literal["near", "short", "hotpatch"]
Policy = Literal["strict", "entry"]
HookName = Literal["before_apply", "after_apply", "before_revert", "after_revert"]


@dataclass(frozen=True, slots=True)
class Segment:
    """One page-aligned piece of the payload with one protection: code r-x, rodata r--, data rw-.

    ``file_size`` bytes come from the payload member at ``file_offset``; the rest up to ``size`` is zero.
    """

    kind: SegmentKind
    offset: int
    size: int
    file_offset: int
    file_size: int


@dataclass(frozen=True, slots=True)
class CodeRange:
    """Code of the baseline that a thread must not be in while it is replaced; ``sha256`` is over the run bytes."""

    vaddr: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the trampoline goes.

    near: five bytes at ``vaddr`` (after an endbr64, where there is one) become ``jmp rel32``.
    short: two bytes at ``vaddr`` become ``jmp rel8`` to ``pad_vaddr``, where five bytes of padding become
    ``jmp rel32``.
    hotpatch (PE alone): the five bytes of padding directly before the entry, at ``pad_vaddr`` = ``vaddr`` - 5, become
    ``jmp rel32``; then the first instruction, two bytes or longer on an even address, becomes ``jmp .-5`` (EB F9) by
    one write of two bytes, which no thread can see half done.
    ``before`` and ``pad_before`` are the bytes on disk that are proven to be there before the first write.
    """

    kind: EntryKind
    vaddr: int
    before: bytes
    pad_vaddr: int | None = None
    pad_before: bytes | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """One replaced function: its old ranges (children such as .cold included), its entry, its new version."""

    name: str
    ranges: tuple[CodeRange, ...]
    entry: Entry
    new_offset: int
    new_size: int


@dataclass(frozen=True, slots=True)
class Import:
    """A symbol of another module, looked up in the target's own scope when the hotpatch is applied.

    ``library`` is the SONAME that provided it at build time (None: any module); ``version`` the symbol version. For a
    PE image it is the name of the DLL in lower case, and ``version`` is None; the DLL may forward to another one.
    """

    name: str
    version: str | None
    library: str | None
    type: Literal["func", "object"]


@dataclass(frozen=True, slots=True)
class Relocation:
    """Bind the field at payload ``offset``: S + addend (abs…), S + addend - P (pc32), or S + addend - the address of
    payload offset 0 (rva32, PE alone: what a table of the payload's unwind information says of the payload).

    S is, by kind: payload: ``target`` as a payload offset; image and slot: ``target`` as a vaddr of the image (slot
    says that it is a GOT or IAT slot of the image); import: ``target`` as an index into the imports.
    ``branch`` marks a pc32 field of a call or jump, which the engine may lead through an island.
    """

    offset: int
    kind: RelocationKind
    form: RelocationForm
    target: int
    addend: int
    branch: bool = False


@dataclass(frozen=True, slots=True)
class PayloadSymbol:
    """A name for a piece of the payload, for profilers, debuggers and people."""

    name: str
    offset: int
    size: int
    type: Literal["func", "object"]


@dataclass(frozen=True, slots=True)
class Unwind:
    """The payload's .eh_frame (ends with a zero terminator). ``throws``: exceptions may pass, so it is registered.

    For a PE image: the payload's table of RUNTIME_FUNCTION, 12 bytes each, sorted, relative to payload offset 0. There
    it is always registered: whatever unwinds, the system's own dispatcher included, knows no other source.
    """

    offset: int
    size: int
    throws: bool


@dataclass(frozen=True, slots=True)
class Override:
    """A refusal that the author overrode, with the written reason."""

    code: str
    file: str
    symbol: str
    finding: str
    reason: str


@dataclass(frozen=True, slots=True)
class Target:
    """What the hotpatch does to one baseline image."""

    image_name: str
    build_id: str
    """The GNU build-id in hex; for a PE image pe-CCCCCCCC-TTTTTTTT, its CheckSum and TimeDateStamp."""
    machine: Literal["x86_64"]
    payload: str
    payload_sha256: str
    payload_size: int
    segments: tuple[Segment, ...]
    functions: tuple[Function, ...]
    relocations: tuple[Relocation, ...]
    imports: tuple[Import, ...]
    symbols: tuple[PayloadSymbol, ...]
    unwind: Unwind | None
    policy: Policy
    policy_reason: str | None
    hooks: tuple[tuple[HookName, int], ...]
    overrides: tuple[Override, ...]
    escapes: bool
    """Whether the program can store the address of anything in the payload (then memory is kept after revert)."""


@dataclass(frozen=True, slots=True)
class Review:
    """Who signed off what no tool can prove. ``digest`` is the one that ``midflight assess`` shows: a sha256 over the
    fix, the baseline, the payload and the findings that the reviewer saw."""

    reviewer: str
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole hotpatch. ``name`` is the series; a higher ``sequence`` of the same name replaces a lower one."""

    schema: int
    name: str
    sequence: int
    description: str
    cves: tuple[str, ...]
    created: str
    """RFC 3339 UTC; from SOURCE_DATE_EPOCH or the newest source file, so that files are deterministic."""
    builder: str
    """The Midflight version that built it."""
    compiler: str
    fix_sha256: str
    targets: tuple[Target, ...]
    review: Review | None = None
    """In schema 2, and always there; in schema 3, where one was made."""
