"""A private apt: the archives that the system is configured for, source and binary side, with all state of our own.

State, lists, downloads and configuration live below a cache folder, so no root is needed and nothing under /etc or /var
changes. Signatures are checked by apt with the keys that the system trusts; proxies and timeouts are the system's, its
hooks are not run.

Knowledge: apt.conf(5), sources.list(5), apt-cache(8), deb822(5).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import ForgeError
from midflight.forge.packages.versions import version_key

_INDEX_AGE = 86400.0
"""Seconds after which the indexes are read again."""

ADMIN = Path("/var/lib/dpkg")
"""dpkg's database."""

Log = Callable[[str], None]
Stanza = Mapping[str, str]
"""The fields of one deb822 stanza, names as the archive writes them; the first line of a field is stripped."""


class SourceError(ForgeError):
    """A package could not be found, fetched or changed; ``str()`` is one line that says what to do next."""


@dataclass(frozen=True, slots=True)
class Apt:
    """apt commands under a private configuration; made by :func:`private_apt`."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run an apt command; standard output and error come together."""
        return run(command, cwd=cwd, env=self.environment)

    def sources(self, name: str) -> tuple[Stanza, ...]:
        """The source packages of exactly that name in the indexes, each version once, newest first."""
        found: dict[str, Stanza] = {}
        for stanza in stanzas(self.run("apt-cache", "showsrc", "--only-source", name).stdout):
            if stanza.get("Package") == name and "Version" in stanza:
                found.setdefault(stanza["Version"], stanza)
        return tuple(found[version] for version in sorted(found, key=version_key, reverse=True))

    def binaries(self, *names: str) -> tuple[Stanza, ...]:
        """The binary packages of those names in the indexes and among the installed ones, each version once."""
        if not names:
            return ()
        found: dict[tuple[str, str, str], Stanza] = {}
        for stanza in stanzas(self.run("apt-cache", "show", "--all-versions", *names).stdout):
            if stanza.get("Package") in names and "Version" in stanza:
                # The installed one has no Filename; the archive's stanza of the same version says where the file is.
                key = stanza["Package"], stanza["Version"], stanza.get("Architecture", "")
                if key not in found or "Filename" in stanza:
                    found[key] = stanza
        return tuple(found.values())

    def providers(self, name: str) -> tuple[str, ...]:
        """Names of the packages that provide a virtual one."""
        text = self.run("apt-cache", "showpkg", name).stdout
        _, found, rest = text.partition("Reverse Provides:")
        return tuple(dict.fromkeys(line.split()[0] for line in rest.splitlines() if line.strip())) if found else ()

    def similar(self, name: str) -> tuple[str, ...]:
        """Names of packages that begin with ``name``, at most five."""
        text = self.run("apt-cache", "pkgnames", name).stdout
        return tuple(sorted(text.split())[:5]) if re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name) else ()

    def download_source(self, name: str, version: str, folder: Path) -> str | None:
        """Download a source package into an empty folder; returns None, or why the archive did not give it."""
        got = self.run("apt-get", "source", "--download-only", "--only-source", "-qq", f"{name}={version}", cwd=folder)
        if got.returncode == 0 and len(list(folder.glob("*.dsc"))) == 1:
            return None
        return _why(got.stdout) or "no .dsc came"

    def download_binary(self, name: str, version: str, folder: Path) -> str | None:
        """Download a binary package into an empty folder; returns None, or why the archive did not give it."""
        got = self.run("apt-get", "download", "-qq", f"{name}={version}", cwd=folder)
        if got.returncode == 0 and len(list(folder.glob("*.deb"))) == 1:
            return None
        return _why(got.stdout) or "no .deb came"


def _why(output: str) -> str:
    errors = [line.removeprefix("E: ") for line in output.splitlines() if line.startswith("E: ")]
    reason = errors[0] if errors else last_line(output)
    return re.sub(r"Failed to fetch \S+/(\S+)\s+(.*?)( \[IP: .*)?$", r"\1: \2", reason)


def stanzas(text: str) -> Iterator[Stanza]:
    """The stanzas of a deb822 text (control files, indexes, the output of apt-cache)."""
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                if name:
                    fields[name] += "\n" + line
            elif found := re.match(r"([!-9;-~]+):[ \t]*(.*)", line):
                name = found[1]
                fields[name] = found[2].rstrip()
            else:
                name = ""
        if fields:
            yield fields


def private_apt(cache: Path, etc: Path, log: Log, admin: Path = ADMIN) -> Apt:
    """Set up apt below ``cache`` and read the indexes, unless they were read within a day.

    Args:
        cache: everything is kept below its folder "apt".
        etc: the system's configuration, which says where Debian's archives are (/etc/apt).
        log: gets one line for each step that takes time.
        admin: dpkg's database, which says what is installed.

    Raises:
        SourceError: no archive is configured, or none answers; apt is not installed.
    """
    need_tools(("apt-get", "apt"), ("dpkg-source", "dpkg-dev"), ("patch", "patch"))
    root = cache.resolve() / "apt"
    root.mkdir(parents=True, exist_ok=True)
    apt = Apt(root, {**os.environ, "LC_ALL": "C", "APT_CONFIG": str(root / "apt.conf")})
    with locked(root / "update.lock"):
        changed = max(path.stat().st_mtime for path in (etc, *etc.glob("sources.list*"), *etc.glob("sources.list.d/*")))
        note = root / "updated-2"
        if note.exists() and max(changed, time.time() - _INDEX_AGE) < note.stat().st_mtime:
            return apt
        _configure(root, etc, admin)
        log("reading the indexes of the configured Debian archives")
        updated = apt.run("apt-get", "update", "-qq")
        if not any((root / "lists").glob("*_Sources*")):
            reason = last_line(updated.stdout) or "no index came"
            raise SourceError(
                f"cannot read the source indexes of the Debian archives: {reason}; check the network and /etc/apt"
            )
        note.touch()
    return apt


def _configure(root: Path, etc: Path, admin: Path) -> None:
    for part in ("lists/partial", "archives/partial", "parts", "sources.d"):
        (root / part).mkdir(parents=True, exist_ok=True)
    one_line, blocks = debian_sources(etc, codename())
    (root / "sources.list").write_text("".join(line + "\n" for line in one_line))
    (root / "sources.d" / "debian.sources").write_text("\n".join(blocks))
    # Proxies, timeouts and the like are the system's; its hooks and index targets are not ours to run.
    dumped = run(["apt-config", "dump", "Acquire"]).stdout.splitlines()
    acquire = [line for line in dumped if not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))]
    configuration = [
        *(line for line in acquire if re.fullmatch(r'Acquire(::[^\s"]+) "[^"]*";', line)),
        'Acquire::Languages "none";',
        f'Dir::State "{root}";',
        f'Dir::State::lists "{root}/lists";',
        f'Dir::State::status "{admin}/status";',
        f'Dir::Cache "{root}";',
        f'Dir::Etc::sourcelist "{root}/sources.list";',
        f'Dir::Etc::sourceparts "{root}/sources.d";',
        f'Dir::Etc::parts "{root}/parts";',
        'Dir::Etc::main "/dev/null";',
        'APT::Sandbox::User "root";',  # the cache may lie where _apt cannot go, below a home folder
    ]
    conf = root / "apt.conf"
    conf.touch(mode=0o600)  # a proxy may have a password
    conf.write_text("\n".join(configuration) + "\n")


def debian_sources(etc: Path, release: str) -> tuple[list[str], list[str]]:
    """Debian's own archives among the configured ones, both sides: (one-line entries, deb822 stanzas).

    Only suites of the running release count (other archives name theirs otherwise), and only their main component.

    Raises:
        SourceError: none is configured.
    """
    suites = {release, f"{release}-updates", f"{release}-security", f"{release}/updates"}
    suites |= {suite.replace(release, "stable") for suite in suites}
    lines: list[str] = []
    for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))):
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = re.match(r"deb(?:-src)?\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.split("#")[0].strip())
            if entry and entry[3] in suites and "main" in entry[4].split():
                lines += [f"{kind} {entry[1] or ''}{entry[2]} {entry[3]} main" for kind in ("deb", "deb-src")]
    blocks: list[str] = []
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        for block in re.split(r"\n\s*\n", text):
            fields = {
                key.lower(): value for key, value in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", block, re.MULTILINE)
            }
            wanted = [suite for suite in fields.get("suites", "").split() if suite in suites]
            off = fields.get("enabled", "yes").strip().lower() in ("no", "false", "0")
            if off or not wanted or "main" not in fields.get("components", "").split():
                continue
            fields |= {"types": " deb deb-src", "suites": " " + " ".join(wanted), "components": " main"}
            fields.pop("architectures", None)
            blocks.append("".join(f"{key.title()}:{value}\n" for key, value in fields.items()))
    if not lines and not blocks:
        raise SourceError(f"no Debian archive for {release} is configured in {etc}; add one to {etc}/sources.list")
    return list(dict.fromkeys(lines)), list(dict.fromkeys(blocks))


def codename() -> str:
    """The code name of the running release: bookworm.

    Raises:
        SourceError: the system does not say.
    """
    text = Path("/etc/os-release").read_text()
    found = re.search(r'^VERSION_CODENAME="?([\w-]+)', text, re.MULTILINE)
    if not found:
        raise SourceError("this system does not say which Debian release it is (VERSION_CODENAME in /etc/os-release)")
    return found[1]


# --- small things --------------------------------------------------------------------------------------------------


def need_tools(*tools: tuple[str, str]) -> None:
    """See that programs are there, given as (program, Debian package).

    Raises:
        SourceError: one is not.
    """
    for tool, provider in tools:
        if shutil.which(tool) is None:
            raise SourceError(f"{tool} is missing; install it with: apt-get install {provider}")


def run(
    command: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in the C locale, without input; standard output and error come together."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=dict(env) if env is not None else {**os.environ, "LC_ALL": "C"},
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def last_line(text: str) -> str:
    """The line of a program's output that says why it failed: apt's first error, otherwise the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or [""])[-1]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, against other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
