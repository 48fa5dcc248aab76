"""What every package format answers: the Protocol that the build command works with, and its plain data.

A package source (dpkg now; docs/adr has how RPM would do it) is asked in this order: which package and version, its
source, the fix, the build, the files that were shipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from midflight.forge.matching.place import Place


@dataclass(frozen=True, slots=True)
class BinaryPackage:
    """One binary package of a source."""

    name: str
    version: str
    """Its own version; that of the source may differ."""
    architecture: str
    installed: bool

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Package:
    """What a name and version given by the user stand for."""

    name: str
    """The name of the source package."""
    version: str
    """Its version, epoch included."""
    binaries: tuple[BinaryPackage, ...]
    """The binary packages that were built from exactly this source and are of this machine's architecture."""
    rebuild: str | None = None
    """The version of the binaries when they are a binary-only rebuild of the source, as 1.0-3+b1."""

    @property
    def installed(self) -> bool:
        """Whether one of them is installed on this machine."""
        return any(binary.installed for binary in self.binaries)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Shipped:
    """A program or library of a binary package."""

    file: Path
    """Where it can be read: the installed file, or one unpacked in our cache."""
    name: str
    """Its path as installed, "/usr/lib/x86_64-linux-gnu/libexpat.so.1.8.10"."""
    package: str
    """The binary package."""


@dataclass(frozen=True, slots=True)
class FixedSource:
    """A source tree without and with a fix."""

    tree: Path
    """The source that the fix is for; shared, to be read only."""
    fix: Path
    """A patch file, or a second tree."""
    label: str
    """The fix in a few words, "CVE-2024-50602 (expat-2.5.0-CVE-2024-50602.patch of 2.5.0-1+deb12u2)"."""
    cves: tuple[str, ...] = ()
    present: bool = False
    """Whether the package's version has the fix already: then ``tree`` is that version without it."""
    made_from: str = ""
    """The version from whose source this one was made, when the exact one is not to be had."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a package is built."""

    command: str
    """Run by sh in the tree; it must compile everything anew in a fresh tree."""
    environment: Mapping[str, str]
    """Variables that the package's own build would set."""
    identity: str
    """Text that changes when the build would come out differently: compilers, libraries and headers by version."""
    place: Place = field(default_factory=Place)
    """Where it is built."""


class PackageSource(Protocol):
    """One package format. Every method may raise InputError or ForgeError with one line that says what to do."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know about how it was done: what was reconstructed, installed, taken along."""

    def resolve(self, name: str, version: str | None) -> Package:
        """The package that a name (and version) stands for: a source or binary package, virtual or renamed ones too.

        Without a version the installed one, otherwise the newest that can be had.
        """

    def fixed_source(self, package: Package, what: str) -> FixedSource:
        """The exact source of a package, fetched or reconstructed, and the fix that ``what`` names.

        ``what`` is a patch file, a tree, a CVE id, or "=VERSION" for the difference to that version.
        """

    def missing_dependencies(self, tree: Path) -> tuple[str, ...]:
        """What has to be installed before the tree can be built, as "name version"; a private root is made now."""

    def install_dependencies(self, tree: Path) -> None:
        """Install it; needs root."""

    def recipe(self, tree: Path, jobs: int) -> Recipe:
        """How the tree is built, without tests, documentation and network."""

    def shipped(self, package: Package) -> tuple[Shipped, ...]:
        """The programs and libraries of the package's binary packages, each file once."""
