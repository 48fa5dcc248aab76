"""Source packages: fetched, unpacked, and copied with or without single patches.

What was fetched once is used again without a network. Used by the package front end, the demo and the corpus tests.

Knowledge: dpkg-source(1) "3.0 (quilt)".
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from midflight.forge.packages.apt import Apt, Log, SourceError, last_line, locked, need_tools, private_apt, run
from midflight.forge.packages.patching import apply_what_is_there, fits, revert_patch, series
from midflight.forge.packages.versions import file_name, from_file_name, version_key

_MISSING_AGE = 3600.0
"""Seconds for which it is believed that the archive lacks a file that its index names."""


@dataclass(frozen=True, slots=True)
class SourcePackage:
    """One Debian source package, unpacked with all its patches applied."""

    name: str
    version: str
    """As the archive says, epoch included: "5:7.0.15-1~deb12u10"."""
    requested: str | None
    """The version that was asked for, when it had left the mirror and another one was taken; otherwise None."""
    dsc: Path
    tree: Path
    """Shared and pristine: take a :meth:`copy` before changing or building anything."""

    @property
    def patches(self) -> Path:
        """The folder of Debian's patches."""
        return self.tree / "debian" / "patches"

    def patch(self, name: str) -> Path:
        """The path of one Debian patch.

        Raises:
            SourceError: this version of the package has no such patch.
        """
        path = self.patches / name
        if not path.is_file():
            raise SourceError(f"{self.name} {self.version} has no debian/patches/{name}; look for its new name there")
        return path

    def copy(self, destination: Path, without: Sequence[str] = ()) -> Path:
        """Make a tree of your own at ``destination``, with all patches but those named in ``without``.

        Raises:
            SourceError: a patch does not exist, or the rest of the series does not fit without it.
        """
        if destination.exists():
            shutil.rmtree(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.tree, destination, symlinks=True, ignore=shutil.ignore_patterns(".pc"))
        order = series(self.patches)
        for name in sorted(without, key=lambda name: order.index(name) if name in order else -1, reverse=True):
            path = self.patch(name)
            if not fits(destination, path, reverse=True):
                # a later patch stands on this one: build the series up again without it
                return self.build_up(destination, [name for name in order if name not in without])
            revert_patch(destination, path)
        return destination

    def build_up(self, destination: Path, patches: Sequence[str]) -> Path:
        """Make a tree of your own at ``destination``, with exactly these patches of the series.

        Raises:
            SourceError: a patch does not exist.
            PatchError: a patch does not fit.
        """
        if destination.exists():
            shutil.rmtree(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        unpack(self.dsc, destination, "--skip-patches")
        for name in patches:
            apply_what_is_there(destination, self.patch(name), fuzz=2)
        return destination


def fetch(
    package: str,
    cache: Path,
    version: str | None = None,
    log: Log | None = None,
    etc: Path = Path("/etc/apt"),
) -> SourcePackage:
    """Fetch and unpack a source package, from the cache when it is there, otherwise from the mirror.

    When ``version`` has left the mirror, the newest one there is taken; ``log`` is told and ``requested`` keeps it.

    Args:
        cache: everything is kept below this folder.
        log: gets one line for each step that takes time; default: standard error.
        etc: the system's configuration, which says where Debian's archives are.

    Raises:
        SourceError: no mirror, no such package, or a tool is missing.
    """
    say = log or (lambda line: print(line, file=sys.stderr, flush=True))
    cache = cache.resolve()
    need_tools(("apt-get", "apt"), ("dpkg-source", "dpkg-dev"), ("patch", "patch"))
    with locked(cache / "lock"):
        chosen = _cached(cache, package, version) or _fetch_newest(cache, package, version, etc, say)
    requested = None if version in (None, chosen) else version
    if requested is not None:
        say(f"{package} {requested} is not on the mirror (any more); using {chosen} instead")
    return _package(cache, package, chosen, requested)


def fetch_exactly(apt: Apt, cache: Path, package: str, version: str, log: Log) -> SourcePackage:
    """Fetch and unpack one version of a source package, from the cache when it is there.

    Raises:
        SourceError: the archive does not have it, although its index may say so; that is remembered for an hour.
    """
    cache = cache.resolve()
    with locked(cache / "lock"):
        if not (cache / package / file_name(version) / "complete").exists():
            note = cache / package / f"missing-{file_name(version)}"
            if note.exists() and time.time() - note.stat().st_mtime < _MISSING_AGE:
                raise SourceError(f"the source of {package} {version} is not on the mirror ({note.read_text()})")
            log(f"fetching the source of {package} {version}")
            reason = _download(apt, cache, package, version)
            if reason is not None:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(reason)
                raise SourceError(f"the source of {package} {version} is not on the mirror ({reason})")
    return _package(cache, package, version, None)


def in_cache(cache: Path, package: str) -> tuple[str, ...]:
    """The versions of a source package that were fetched already."""
    return tuple(from_file_name(path.parent.name) for path in (cache / package).glob("*/complete"))


def _package(cache: Path, package: str, version: str, requested: str | None) -> SourcePackage:
    folder = cache / package / file_name(version)
    return SourcePackage(package, version, requested, next(folder.glob("*.dsc")), folder / "tree")


def _cached(cache: Path, package: str, version: str | None) -> str | None:
    """The version to take without asking the mirror, if there is one."""
    found = in_cache(cache, package)
    if version is None:
        return max(found, key=version_key, default=None)
    if version in found:
        return version
    instead = _instead(cache, package, version)
    return instead.read_text().strip() if instead.exists() else None


def _instead(cache: Path, package: str, version: str) -> Path:
    """The note that says which version was taken for one that was not there."""
    return cache / package / f"instead-of-{file_name(version)}"


def _fetch_newest(cache: Path, package: str, version: str | None, etc: Path, log: Log) -> str:
    """Fetch the version asked for, otherwise the newest that the mirror really has; returns which.

    An index may name files that are gone (or not yet there), so lower versions are tried until one comes.
    """
    apt = private_apt(cache, etc, log)
    order = [stanza["Version"] for stanza in apt.sources(package)]
    if not order:
        raise SourceError(
            f"the configured Debian archives have no source package {package}; check /etc/apt/sources.list*"
        )
    if version in order:
        order = [version, *(other for other in order if other != version)]
    reasons: list[str] = []
    for candidate in order:
        log(f"fetching the source of {package} {candidate}")
        reason = _download(apt, cache, package, candidate)
        if reason is None:
            if version not in (None, candidate):
                _instead(cache, package, str(version)).write_text(candidate + "\n")
            return candidate
        log(f"{package} {candidate} is in the index but not on the mirror ({reason})")
        reasons.append(reason)
    raise SourceError(f"cannot fetch the source of {package} {order[0]}: {reasons[0]}; is the mirror up?")


def _download(apt: Apt, cache: Path, package: str, version: str) -> str | None:
    """Download and unpack into the cache; returns None, or why the archive did not give it.

    Whatever ends it early, nothing half-made stays under a name that is looked at.
    """
    folder = cache / package / file_name(version)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        reason = apt.download_source(package, version, folder)
        if reason is None:
            unpack(next(folder.glob("*.dsc")), folder / "tree")
            (folder / "complete").touch()
            return None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)
    return reason


def unpack(dsc: Path, tree: Path, *options: str) -> None:
    """Unpack a source package with dpkg-source.

    Raises:
        SourceError: it cannot be unpacked.
    """
    done = run(["dpkg-source", *options, "-x", str(dsc), str(tree)], cwd=dsc.parent)
    if done.returncode != 0:
        raise SourceError(f"cannot unpack {dsc.name}: {last_line(done.stdout)}")
