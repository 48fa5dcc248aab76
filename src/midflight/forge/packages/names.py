"""From what a user calls a package to a source, a version and its binary packages.

A name may be that of a source, of a binary package (with an architecture behind a colon), virtual, or of a transitional
package whose content moved elsewhere. Knowledge: Debian Policy 3.6 (virtual packages), 7 (relations), deb-control(5),
dpkg-query(1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import InputError
from midflight.forge.packages.apt import ADMIN, Apt, Stanza, run
from midflight.forge.packages.model import BinaryPackage, Package
from midflight.forge.packages.versions import version_key, without_binary_only

_NAME = re.compile(r"^[a-z0-9][a-z0-9+.-]+$")
_NO_CODE = re.compile(r"-(?:dev|doc|dbg|dbgsym|udeb|common-dev|headers)$|-doc-")
_FORMAT = "${Package}\t${Architecture}\t${db:Status-Status}\t${Version}\t${source:Package}\t${source:Version}\n"


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed package."""

    name: str
    architecture: str
    version: str
    source: str
    source_version: str


def installed_packages(admin: Path = ADMIN) -> tuple[Installed, ...]:
    """Everything that dpkg has installed."""
    found = []
    for line in run(["dpkg-query", f"--admindir={admin}", "-W", "-f", _FORMAT]).stdout.splitlines():
        fields = line.split("\t")
        if len(fields) == 6 and fields[2] == "installed":
            found.append(Installed(fields[0], fields[1], fields[3], fields[4], fields[5]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Names:
    """Looks names up in the indexes of an apt and among the installed packages."""

    apt: Apt
    installed: Sequence[Installed]
    architecture: str
    """dpkg's name of this machine's architecture: amd64."""

    def resolve(self, name: str, version: str | None) -> Package:
        """What a name and version stand for.

        Raises:
            InputError: there is no such package, or not in that version; several packages provide it.
        """
        name = self._plain_name(name)
        source = self._source_of(name)
        known = self._binaries_of(source, name)
        if version is None:
            chosen = self._usual_version(name, source, known)
        else:
            chosen = self._named_version(name, source, version, known)
        binaries = [b for b, source_version in known if source_version == chosen]
        if version is not None and any(b.version == version for b in binaries):
            # A binary-only rebuild is another build than that of the source version that it shares.
            kin = {b.version for b in binaries if without_binary_only(b.version) == without_binary_only(version)}
            binaries = [b for b in binaries if b.version == version or b.version not in kin]
        binaries = _one_build(binaries)
        rebuilt = {b.version for b in binaries if without_binary_only(b.version) != b.version}
        rebuild = max(rebuilt, key=version_key, default=None)
        return Package(source, chosen, tuple(sorted(binaries, key=lambda b: b.name)), rebuild)

    def _plain_name(self, name: str) -> str:
        plain, colon, architecture = name.partition(":")
        if colon and architecture not in (self.architecture, "any", "native"):
            raise InputError(
                f"{name}: packages of {architecture} cannot be hotpatched on this {self.architecture} machine; "
                f"give {plain}"
            )
        if not _NAME.match(plain):
            raise InputError(f"{name!r} is no name of a Debian package; give one as libexpat1 or expat")
        return plain

    # --- the source --------------------------------------------------------------------------------------------------

    def _source_of(self, name: str, depth: int = 0) -> str:
        """The source package behind a name."""
        for package in self.installed:
            if package.name == name and package.architecture in (self.architecture, "all"):
                stanza = self.apt.binaries(name)
                return self._moved_to(name, stanza, depth) or package.source
        found = self.apt.binaries(name)
        if found:
            return self._moved_to(name, found, depth) or _source(found[0])[0]
        if self.apt.sources(name) or any(package.source == name for package in self.installed):
            return name
        providers = self.apt.providers(name)
        if providers:
            return self._provider(name, providers)
        near = self.apt.similar(name)
        hint = f"; there are {', '.join(near)}" if near else "; check the name, and that its archive is configured"
        raise InputError(f"the configured Debian archives have no package {name}{hint}")

    def _moved_to(self, name: str, found: Iterable[Stanza], depth: int) -> str | None:
        """Where the content of a transitional package went, when that is another source."""
        newest = max(found, key=lambda stanza: version_key(stanza["Version"]), default=None)
        if newest is None or depth > 3 or not re.search(r"(?i)\btransitional\b", newest.get("Description", "")):
            return None
        depends = [word.strip() for word in newest.get("Depends", "").split(",") if word.strip()]
        if len(depends) != 1:
            return None
        return self._source_of(re.split(r"[\s:(|]", depends[0], maxsplit=1)[0], depth + 1)

    def _provider(self, name: str, providers: Sequence[str]) -> str:
        here = [p for p in self.installed if p.name in providers and p.architecture in (self.architecture, "all")]
        sources = {p.source for p in here} or {_source(s)[0] for s in self.apt.binaries(*providers)}
        if len(sources) == 1:
            return sources.pop()
        raise InputError(
            f"{name} is a virtual package, provided by {', '.join(providers[:8])}{' …' if providers[8:] else ''}; "
            "give one of these"
        )

    # --- the version -------------------------------------------------------------------------------------------------

    def _binaries_of(self, source: str, name: str) -> list[tuple[BinaryPackage, str]]:
        """All binary packages of a source that hold code for this machine, with the source version of each."""
        names = {name, *(p.name for p in self.installed if p.source == source)}
        for stanza in self.apt.sources(source):
            names |= {word.strip() for word in stanza.get("Binary", "").replace("\n", " ").split(",")} - {""}
        found: dict[tuple[str, str], tuple[BinaryPackage, str]] = {}
        for package in self.installed:
            if package.source == source and package.architecture == self.architecture:
                binary = BinaryPackage(package.name, package.version, package.architecture, True)
                found[package.name, package.version] = binary, package.source_version
        for stanza in self.apt.binaries(*sorted(name for name in names if not _NO_CODE.search(name))):
            origin, source_version = _source(stanza)
            key = stanza["Package"], stanza["Version"]
            if origin == source and stanza.get("Architecture") == self.architecture and "Filename" in stanza:
                found.setdefault(key, (BinaryPackage(*key, self.architecture, False), source_version))
        return [item for item in found.values() if not _NO_CODE.search(item[0].name)]

    def _usual_version(self, name: str, source: str, known: Sequence[tuple[BinaryPackage, str]]) -> str:
        """The installed version of that package, else of any of its source, else the newest."""
        own = [v for b, v in known if b.installed and b.name == name]
        here = own or [v for b, v in known if b.installed]
        versions = here or [v for _, v in known]
        if not versions:
            raise InputError(
                f"{source} has no binary package for {self.architecture} in the configured archives, and none is "
                "installed; there is nothing to patch"
            )
        return max(versions, key=version_key)

    def _named_version(self, name: str, source: str, version: str, known: Sequence[tuple[BinaryPackage, str]]) -> str:
        of_binary = [v for b, v in known if b.version == version and b.name == name]
        of_any = [v for b, v in known if version in (v, b.version)]
        if of_binary or of_any:
            return (of_binary or of_any)[0]
        there = sorted({b.version for b, _ in known}, key=version_key, reverse=True)
        raise InputError(
            f"{name} {version} is neither installed nor in the configured archives; there are "
            f"{', '.join(there) or 'no versions at all'}"
        )


def _one_build(binaries: Sequence[BinaryPackage]) -> list[BinaryPackage]:
    """Of each package one version: the installed one, else the newest."""
    best: dict[str, BinaryPackage] = {}
    for binary in binaries:
        other = best.get(binary.name)
        if other is None or (binary.installed, version_key(binary.version)) > (
            other.installed,
            version_key(other.version),
        ):
            best[binary.name] = binary
    return list(best.values())


def _source(stanza: Stanza) -> tuple[str, str]:
    """Name and version of the source of a binary package (deb-control(5), Source)."""
    named = re.match(r"(\S+)(?:\s+\(([^)]+)\))?", stanza.get("Source", ""))
    name = named[1] if named else stanza["Package"]
    version = named[2] if named and named[2] else stanza["Version"]
    return name, version
