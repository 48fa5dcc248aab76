"""What a case of the corpus is: a published fix of a Debian package, and what must become of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.corpus.targets import Host, Target

FLAGS = "-O2 -g"
"""Debian's, but for the hardening, which the recipes leave to the compiler's defaults."""


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian source package, and the image in it that the fixes concern."""

    name: str
    version: str
    """Debian's, epoch included; should it have left the mirror, then what is there is taken."""
    make: str
    """The build command, for a shell in the source tree. It may run again in a tree that was built."""
    image: str
    """Path in the built tree."""
    holes: tuple[str, ...] = ()
    """Names in debian/patches that are left out of the source: those of all cases that share one vulnerable build."""
    stripped: bool = True
    """Whether the binary that runs has lost its symbols, as everything has that Debian ships."""


@dataclass(frozen=True, slots=True)
class HostProgram:
    """A program that uses a library under test, compiled against its vulnerable tree."""

    source: str
    """In ``hosts/``."""
    libraries: tuple[str, ...] = ()
    """Linked files, in the tree."""
    include: tuple[str, ...] = (".",)
    """Folders with headers, in the tree."""
    shared: bool = False
    """A library that is loaded into the server under test, rather than a program."""
    options: tuple[str, ...] = ()
    """For the compiler, as "-lz" for a library whose development files are installed."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is started, to be patched."""

    image: Path
    """The binary that the hotpatch is for."""
    program: Path | None = None
    """The host program, when the image is a library."""


@dataclass(frozen=True, slots=True)
class Patched:
    """The fix must become a hotpatch that closes the hole in the live process, and opens it again when reverted."""

    start: Callable[[Subject, Path], Target]
    """From what is to run, and a scratch folder."""
    functions: frozenset[str]
    """What the hotpatch must replace: all that the fix changes, and nothing whose line numbers alone moved."""
    host: HostProgram | None = None
    proof: Literal["live", "call"] = "live"
    """live: the hole itself is seen from outside. call: the host program calls the function, and shows old and new."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The forge must refuse the fix."""

    codes: frozenset[str]
    """Refusals that must be among those reported."""
    names: frozenset[str]
    """What the refusals must name between them: a struct, a variable, a function."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """The fix changes no code of this image: the forge must say that there is nothing to apply (MF160)."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The image that runs has the fix already, and the forge must say that (MF163)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One published fix, for our build of the vulnerable source."""

    package: Package
    cve: str
    patches: tuple[str, ...]
    """Names in debian/patches, in the order of the series."""
    expected: Patched | Refused | Nothing | Fixed
    quick: bool = False
    """Whether it belongs to every test run, rather than to ``make corpus`` alone."""
    note: str = ""
    """One sentence for below the table, where the verdict needs an explanation."""
    reviewed: Mapping[str, str] = field(default_factory=dict)
    """Findings that a reviewer signed off ("CODE:SYMBOL"), each with the reason."""

    @property
    def name(self) -> str:
        """As it is called in the table, and to pick it: ``make corpus CASE=package/CVE``."""
        return f"{self.package.name}/{self.cve}"

    @property
    def running(self) -> str:
        """How the binary that runs came about, for the table."""
        return "plain" if self.package.stripped else "+syms"


@dataclass(frozen=True, slots=True)
class Shipped:
    """A binary package that Debian ships, and the image in it that the fixes concern: that very file runs."""

    name: str
    """Of the source package."""
    binary: str
    """Of the binary package."""
    version: str
    """Of both, epoch included."""
    image: str
    """File name of the image in the binary package; a link to it will do."""
    make: str = ""
    """A build command as in :class:`Package`, where a part of a large package will do. Empty: by --debian."""
    built: str = ""
    """With ``make``: path of the image in the built tree."""
    private: bool = False
    """Its build dependencies go into a private root: they come with other versions of what a machine may run."""


@dataclass(frozen=True, slots=True)
class Patches:
    """A fix: the code parts of patches in debian/patches, of another version of the source if it is named."""

    names: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Files:
    """A fix: what some files are in another version of the source, where one patch of that holds many fixes."""

    paths: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A part of a fix that we wrote ourselves, as somebody does who cannot wait for one."""

    path: str
    old: str
    """Stands in the file once."""
    new: str


@dataclass(frozen=True, slots=True)
class ShippedCase:
    """One published fix, for the binary that Debian ships."""

    package: Shipped
    cve: str
    fix: str | Patches | Files | tuple[Edit, ...]
    """A word as --fix takes it (a CVE id, =VERSION), or how the patch file is made that it is given."""
    expected: Patched | Refused | Nothing | Fixed
    quick: bool = False
    note: str = ""
    reviewed: Mapping[str, str] = field(default_factory=dict)
    """As in :class:`Case`."""

    @property
    def name(self) -> str:
        """As it is called in the table."""
        return f"{self.package.name}/{self.cve}"

    @property
    def running(self) -> str:
        """For the table."""
        return "deb"


AnyCase = Case | ShippedCase


def library(subject: Subject, scratch: Path) -> Target:
    """Start the host program of a library."""
    assert subject.program is not None
    return Host(subject.program, subject.image.parent, scratch)
