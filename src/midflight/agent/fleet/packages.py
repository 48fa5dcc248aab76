"""Which package a file belongs to, by the databases of dpkg and rpm. Asked for new files only, many at a time."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_DPKG, _RPM = "var/lib/dpkg/status", ("var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages", "usr/lib/sysimage/rpm")
_PLAIN = re.compile(r"/[A-Za-z0-9/._+~:@=,-]+")
"""Paths that dpkg-query takes for paths, and not for patterns."""
_TIME = 20.0
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Package:
    """A package and its version; both empty: no package has the file."""

    name: str = ""
    version: str = ""


NONE = Package()


class Packages:
    """The packages of files of this machine; of other file systems (containers) nothing is known.

    Args:
        root: where the system is installed.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._known: dict[str, Package] = {}
        self._mark: object = None

    def of(self, paths: Iterable[str]) -> dict[str, Package]:
        """The package of each file."""
        mark = self._marks()
        if mark != self._mark:
            self._known.clear()  # something was installed or removed
            self._mark = mark
        paths = set(paths)
        new = sorted(path for path in paths if path not in self._known and _PLAIN.fullmatch(path))
        for at in range(0, len(new), _AT_ONCE):
            self._known |= self._ask(new[at : at + _AT_ONCE])
        return {path: self._known.get(path, NONE) for path in paths}

    def _marks(self) -> object:
        found = []
        for name in (_DPKG, *_RPM):
            try:
                state = os.stat(os.path.join(self._root, name))
                found.append((state.st_mtime_ns, state.st_size, state.st_ino))
            except OSError:
                found.append((0, 0, 0))
        return found

    def _ask(self, paths: list[str]) -> dict[str, Package]:
        found = dict.fromkeys(paths, NONE)
        if os.path.exists(os.path.join(self._root, _DPKG)):
            found |= _dpkg(paths, self._root)
        rest = [path for path in paths if found[path] is NONE]
        if rest and any(os.path.exists(os.path.join(self._root, name)) for name in _RPM):
            found |= _rpm(rest, self._root)
        return found


def _dpkg(paths: list[str], root: str) -> dict[str, Package]:
    # A merged /usr: the kernel says /usr/lib/x, the database has it as /lib/x, or the other way round.
    spelled = {path: [path, path[4:] if path.startswith("/usr/") else "/usr" + path] for path in paths}
    asked = [name for names in spelled.values() for name in names]
    owners: dict[str, str] = {}
    for line in _output("dpkg-query", f"--admindir={os.path.join(root, 'var/lib/dpkg')}", "--search", "--", *asked):
        names, colon, path = line.partition(": ")
        if colon and not names.startswith("diversion"):
            owners[path] = names.split(", ")[0]
    by_path = {p: owners[n] for p, names in spelled.items() for n in names if n in owners}
    form = r"--showformat=${binary:Package}\t${Version}\n"
    versions: dict[str, str] = {}
    if by_path:
        admin = f"--admindir={os.path.join(root, 'var/lib/dpkg')}"
        for line in _output("dpkg-query", admin, form, "--show", "--", *sorted(set(by_path.values()))):
            name, _, version = line.partition("\t")
            versions[name] = versions[name.partition(":")[0]] = version
    return {
        path: Package(owner.partition(":")[0], versions.get(owner, versions.get(owner.partition(":")[0], "")))
        for path, owner in by_path.items()
    }


def _rpm(paths: list[str], root: str) -> dict[str, Package]:
    found = {}
    form = r"[%{=NAME}\t%{=VERSION}-%{=RELEASE}\t%{FILENAMES}\n]"
    wanted = set(paths)
    for line in _output("rpm", f"--root={root}", "-qf", "--queryformat", form, *paths):
        name, version, path = [*line.split("\t"), "", "", ""][:3]
        if path in wanted:
            found[path] = Package(name, version)
    return found


def _output(*words: str) -> list[str]:
    """Lines of a command's output; what it cannot say, it leaves out, with a status that is not 0."""
    try:
        done = subprocess.run(
            words, capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIME, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode(errors="replace").splitlines()
