"""What the steps of the forge hand to each other: captured builds, objects as atoms, differences, findings, matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# --- capture -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompiledObject:
    """One object file that the captured build made."""

    path: Path
    """Where the build put it, absolute (the tree is at the same path for pre and post)."""
    source: Path
    """The primary source file, absolute."""
    saved: Path
    """Our own copy, which no later build step overwrites."""
    sha256: str
    compiler: str
    """As the compiler itself says in the object: "GCC: (Debian 12.2.0-14+deb12u1) 12.2.0"."""
    arguments: tuple[str, ...]
    directory: Path


@dataclass(frozen=True, slots=True)
class Build:
    """One captured build of the tree."""

    objects: Mapping[Path, CompiledObject]
    """By object path."""
    image: Path
    """Our copy of the image that this build linked (with symbols and debug information)."""
    inputs: tuple[Path, ...]
    """Paths of those captured objects that were linked into the image, archives resolved to members."""


@dataclass(frozen=True, slots=True)
class BuildPair:
    """The captured builds without (pre) and with (post) the fix, and the plain build of the unfixed tree."""

    tree: Path
    plain_image: Path | None
    pre: Build
    post: Build
    changed: tuple[Path, ...]
    """Object paths of the image whose content differs (or that only one side has)."""


# --- objects -------------------------------------------------------------------------------------------------------

AtomKind = Literal["function", "data", "rodata", "bss", "tls", "string", "other"]


@dataclass(frozen=True, slots=True)
class Reference:
    """One relocation of an atom. Exactly one of ``atom`` (same object) and ``symbol`` (undefined here) is set.

    ``addend`` is relative to the start of the target atom (or to the symbol's value), as in S + A.
    """

    offset: int
    type: int
    """R_X86_64_*."""
    addend: int
    atom: str | None
    """Key of the target atom in the same object."""
    symbol: str | None
    """Name of the undefined symbol."""
    bias: int = 0
    """What is really meant lies at S + A + bias: for a PC-relative field in code the distance from the field to the
    end of its instruction (4, 5, 8 …), for an entry of a jump table minus the entry's offset in the table, else 0."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Code of a function that one entry of .pdata describes: offsets in the atom, and its UNWIND_INFO."""

    start: int
    end: int
    info: str
    """Key of the atom that the UNWIND_INFO is in …"""
    info_offset: int
    """… and where."""


@dataclass(frozen=True, slots=True)
class Atom:
    """The smallest thing that is compared and moved: a function, a variable, a constant, a string.

    ``key`` is unique in its object: the symbol name, or for unnamed things the section name and offset; where one
    section holds several (no -fdata-sections, assembler files) the section is cut at its symbols.
    """

    key: str
    name: str
    kind: AtomKind
    binding: Literal["local", "global", "weak", "unique"]
    section: str
    offset: int
    size: int
    alignment: int
    data: bytes
    """Contents; empty for bss."""
    references: tuple[Reference, ...]
    parent: str | None = None
    """Key of the function this .cold/.part/.isra/.constprop child, jump table or exception table belongs to."""
    aliases: tuple[str, ...] = ()
    """Other names of the same place."""
    ifunc: bool = False
    padded: bool = False
    """Whether zeros that fill up to the next label may be at its end: COFF says where unnamed constants begin, not
    where they end."""
    lead: bytes = b""
    """Filling that its section begins with, right up to it: room for a jump that compilers leave where they are asked
    to make functions hot-patchable. Nothing else is in the section before it, and nothing refers to it."""
    stretches: tuple[Stretch, ...] = ()
    """In COFF objects: what .pdata describes, in order. Handlers of exceptions in a function have each their own."""
    least_alignment: int = 0
    """What its address in run is a multiple of; 0: ``alignment``. GNU's assembler aligns sections of COFF objects to 16
    bytes at least, so that ``alignment`` is that of the copy, but says little of what stands in a section of others."""
    sized: bool = True
    """False where the object does not say where it ends (hand-written assembler): it reaches up to the next symbol."""

    @property
    def aligned(self) -> int:
        """What its address in run is a multiple of, whatever sections run was built with."""
        return self.least_alignment or self.alignment


@dataclass(frozen=True, slots=True)
class ObjectCode:
    """One object file as atoms, in section order."""

    path: Path
    file: Path
    """The file it was read from (ELF, with DWARF)."""
    compiler: str
    atoms: Mapping[str, Atom]
    common: frozenset[str] = frozenset()
    """Keys of tentative definitions: atoms of kind "bss" in the pseudo-section COMMON."""
    lto: bool = False
    """Whether it was compiled for link-time optimisation, so that its code is not what runs."""


# --- differences and findings --------------------------------------------------------------------------------------


FindingKind = Literal["refusal", "sign-off", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Why something cannot (or only with a person's word) be hotpatched, or what a person should know. Codes are
    stable: docs/reference/refusals.md."""

    code: str
    """MF1xx."""
    file: str
    symbol: str
    reason: str
    remedy: str
    overridable: bool = True
    kind: FindingKind = "refusal"

    @property
    def blocks(self) -> bool:
        """Whether no hotpatch is written while this finding stands."""
        return self.kind in ("refusal", "sign-off")


@dataclass(frozen=True, slots=True)
class ObjectDiff:
    """Differences of one object, pre to post. Keys are atom keys of the side that the field name says."""

    pre: ObjectCode | None
    post: ObjectCode
    changed: tuple[tuple[str, str], ...] = ()
    """Functions to replace, as (pre key, post key): code differs, or they refer to something that had to be
    replaced."""
    new: tuple[str, ...] = ()
    """Post keys of functions and data that pre has not."""
    gone: tuple[str, ...] = ()
    """Pre keys that post has not."""
    replaced_constants: tuple[tuple[str, str], ...] = ()
    """Read-only data with a new content, that goes along because every function that refers to it is replaced."""
    line_only: tuple[str, ...] = ()
    """Functions that differ in line numbers alone, and stay."""
    correlation: Mapping[str, str] = field(default_factory=dict)
    """Post key to pre key, for every post atom that already exists in pre (renamed statics included)."""
    findings: tuple[Finding, ...] = ()


# --- match ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where something of pre lies in the image that runs."""

    vaddr: int
    size: int
    witnesses: int
    """How many independent witnesses gave this very address: fields of proven code and data, neighbours, contents,
    symbols."""
    how: str
    """In words, for the match report: "exported symbol", "3 references from …"."""


@dataclass(frozen=True, slots=True)
class ObjectMatch:
    """How much of one object was matched. Only functions that run can have count."""

    functions: int
    matched: int
    unmatched: tuple[str, ...]
    """The names of the others."""


@dataclass(frozen=True, slots=True)
class Match:
    """Run-pre matching of the objects concerned against the running image.

    Where the key is a symbol's name, a local symbol goes by "object path:atom key".
    """

    functions: Mapping[tuple[Path, str], Place]
    """By (object path, pre key): functions whose every byte is proven."""
    data: Mapping[tuple[Path, str], Place]
    """Other atoms by (object path, pre key)."""
    symbols: Mapping[str, Place]
    """Global symbols that are defined in the image, by name."""
    slots: Mapping[str, int]
    """Imported symbol (name, or name@version) to the vaddr of its GOT slot."""
    plt: Mapping[str, int]
    """Imported symbol, or one that stands for what a resolver chose (IFUNC), to the vaddr of its PLT entry."""
    tls: Mapping[str, int]
    """Thread-local symbol to its offset from the thread pointer (executables)."""
    findings: tuple[Finding, ...] = ()
    matched_functions: int = 0
    """Of the objects concerned, as a whole: functions that were matched …"""
    total_functions: int = 0
    """… of so many."""
    layouts: Mapping[tuple[Path, str], Mapping[int, int]] = field(default_factory=dict)
    """Of each matched function: offset in pre of every instruction to its vaddr in run."""
    tls_offsets: Mapping[str, int] = field(default_factory=dict)
    """Thread-local symbol to its offset in the image's thread-local storage (libraries)."""
    tls_pairs: Mapping[str, int] = field(default_factory=dict)
    """Thread-local symbol to the vaddr of its pair of GOT slots (module, offset)."""
    tls_slots: Mapping[str, int] = field(default_factory=dict)
    """Thread-local symbol to the vaddr of the GOT slot that holds its offset from the thread pointer."""
    tls_module: int | None = None
    """The vaddr of the pair of GOT slots that stands for the image's own thread-local storage as a whole."""
    absent: frozenset[tuple[Path, str]] = frozenset()
    """Functions of pre that run provably does not have: every call was inlined, or the linker dropped them."""
    objects: Mapping[Path, ObjectMatch] = field(default_factory=dict)
    """Of the objects concerned: how much of each was matched."""
    resolvers: Mapping[str, int] = field(default_factory=dict)
    """Global symbols that stand for what a resolver chose (IFUNC), to the vaddr of that resolver."""
