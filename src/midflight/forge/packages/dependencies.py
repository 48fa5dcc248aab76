"""What a source package needs in order to be built: what is missing, installing it, and what is there by version.

Knowledge: dpkg-checkbuilddeps(1), apt-get(8) build-dep, deb-buildinfo(5) "Installed-Build-Depends".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from midflight.forge.packages.apt import Apt, Log, SourceError, last_line, run, stanzas
from midflight.forge.packages.buildroot import options_for

PROFILES = "nocheck,nodoc,noudeb"
"""Build profiles (https://wiki.debian.org/BuildProfileSpec): no tests, documents, installer packages."""

_RELATION = re.compile(r"([a-z0-9][a-z0-9+.-]*)(?::\w+)?\s*(?:\([^)]*\))?")
_INSTALL = re.compile(r"^Inst (\S+) (?:\[([^\]]+)\] )?\((\S+)")
_ALWAYS = ("dpkg-dev", "gcc", "g++", "libc6-dev", "make", "binutils", "libc6", "debhelper")


def unmet(tree: Path, root: Path | None = None) -> str:
    """What dpkg-checkbuilddeps misses (in a private root), in its words; empty when nothing is missing."""
    admin = [f"--admindir={root}/var/lib/dpkg"] if root is not None else []
    done = run(["dpkg-checkbuilddeps", *admin, "-B", "-P", PROFILES], cwd=tree)
    return (
        "" if done.returncode == 0 else last_line(done.stdout).partition("dependencies: ")[2] or last_line(done.stdout)
    )


def plan(apt: Apt, tree: Path, root: Path | None = None) -> tuple[str, ...]:
    """The packages that would be installed (into a private root), as "name version".

    Raises:
        SourceError: they cannot be installed, or only by upgrading or removing packages that this machine runs.
    """
    done = apt.run(*_command(tree, root), "--simulate")
    if done.returncode != 0:
        raise SourceError(
            f"the build dependencies of {tree.name} cannot be installed: {_problem(done.stdout)}; "
            "install them by hand, or build on a machine that has them"
        )
    new: list[str] = []
    other: list[str] = []
    for line in done.stdout.splitlines():
        if found := _INSTALL.match(line):
            (other if found[2] else new).append(f"{found[1]} {found[3]}")
        elif line.startswith("Remv "):
            other.append(f"{line.split()[1]} (removed)")
    if other and root is None:
        raise SourceError(
            "the build dependencies can only be installed together with a change of what this machine runs "
            f"({', '.join(other[:6])}{' …' if other[6:] else ''}); build in a private root: "
            "--build-root DIR"
        )
    return tuple(new)


def install(apt: Apt, tree: Path, log: Log, root: Path | None = None) -> None:
    """Install the build dependencies (into a private root); they stay installed.

    Raises:
        SourceError: not root, or apt failed.
    """
    packages = plan(apt, tree, root)
    if os.geteuid() != 0:
        raise SourceError(
            f"{len(packages)} packages are needed for the build: {' '.join(p.split()[0] for p in packages)}; "
            "install them as root, or run this as root"
        )
    where = f"into {root}" if root is not None else "on this machine, where they stay"
    log(f"installing {len(packages)} packages that the build needs {where}: {', '.join(packages)}")
    environment = {**apt.environment, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-y", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]
    done = run([*_command(tree, root), *options], env=environment)
    if done.returncode != 0:
        raise SourceError(f"the build dependencies could not be installed: {_problem(done.stdout)}")


def _command(tree: Path, root: Path | None) -> list[str]:
    place = options_for(root) if root is not None else []
    return ["apt-get", "build-dep", "-qq", *place, "--no-install-recommends", "--arch-only", "-P", PROFILES, f"{tree}/"]


def _problem(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()]
    telling = [line for line in lines if re.search(r"^(E: |.*(Depends:|but it is not))", line)]
    return telling[0].removeprefix("E: ") if telling else last_line(output)


def installed_closure(tree: Path, status: Path = Path("/var/lib/dpkg/status")) -> str:
    """Name and version of every installed package that a build of ``tree`` can see: the closure of its dependencies.

    Two builds with the same closure read the same compilers, headers and libraries.
    """
    versions: dict[str, str] = {}
    needs: dict[str, set[str]] = {}
    provided: dict[str, set[str]] = {}
    for stanza in stanzas(status.read_text(encoding="utf-8", errors="replace")):
        if stanza.get("Status", "").endswith(" installed"):
            name = stanza["Package"]
            versions[name] = stanza.get("Version", "")
            needs[name] = _names((stanza.get("Pre-Depends", ""), stanza.get("Depends", "")))
            for virtual in _names((stanza.get("Provides", ""),)):
                provided.setdefault(virtual, set()).add(name)
    control = next(stanzas((tree / "debian" / "control").read_text(encoding="utf-8", errors="replace")), {})
    pending = list(_names(value for key, value in control.items() if key.startswith("Build-Depends"))) + list(_ALWAYS)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        pending += [*needs.get(name, ()), *provided.get(name, ())]
    return "\n".join(f"{name} {versions[name]}" for name in sorted(seen & versions.keys()))


def _names(relations: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for text in relations:
        text = re.sub(r"\[[^\]]*\]|<[^>]*>", "", text)
        for word in re.split(r"[,|]", text):
            if named := _RELATION.match(word.strip()):
                found.add(named[1])
    return found
