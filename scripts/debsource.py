"""Fetches Debian source packages through a private apt configuration; the system's own stays as it is.

The archives are those that the system is configured for (their ``deb-src`` side); state, lists and downloads live below
the cache folder given, so no root is needed and nothing under /etc or /var changes. What was fetched once is used again
without a network. Used by the demo and by the corpus tests; by hand: ``python3 scripts/debsource.py --help``.

Knowledge: apt.conf(5), sources.list(5), dpkg-source(1) "3.0 (quilt)".
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "sources"

_INDEX_AGE = 86400.0
"""Seconds after which the indexes are read again."""

Log = Callable[[str], None]


class SourceError(Exception):
    """A source package could not be fetched or changed; ``str()`` is one line that says what to do next."""


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
        files = [self.patch(name) for name in without]
        if destination.exists():
            shutil.rmtree(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.tree, destination, symlinks=True, ignore=shutil.ignore_patterns(".pc"))
        order = _series(self.patches)
        files.sort(key=lambda path: order.index(path.name) if path.name in order else -1, reverse=True)
        for path in files:
            if not fits(destination, path, reverse=True):
                # a later patch stands on this one: build the series up again without it
                shutil.rmtree(destination)
                _unpack(self.dsc, destination, "--skip-patches")
                for name in order:
                    if name not in without:
                        _change(destination, self.patch(name), reverse=False, fuzz=2)
                return destination
            revert_patch(destination, path)
        return destination


def fetch(
    package: str,
    cache: Path = DEFAULT_CACHE,
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
    for tool, provider in (("apt-get", "apt"), ("dpkg-source", "dpkg-dev"), ("patch", "patch")):
        if shutil.which(tool) is None:
            raise SourceError(f"{tool} is missing; install it with: apt-get install {provider}")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        chosen = _cached(cache, package, version) or _fetch_newest(cache, package, version, etc, say)
    folder = cache / package / _file_name(chosen)
    requested = None if version in (None, chosen) else version
    if requested is not None:
        say(f"{package} {requested} is not on the mirror (any more); using {chosen} instead")
    return SourcePackage(package, chosen, requested, next(folder.glob("*.dsc")), folder / "tree")


def fits(tree: Path, patch: Path, reverse: bool = False) -> bool:
    """Whether a patch can be applied (or taken back) in ``tree``; changes nothing."""
    return _patch(tree, patch, reverse, dry_run=True).returncode == 0


def apply_patch(tree: Path, patch: Path) -> None:
    """Apply a patch (-p1) to ``tree``.

    Raises:
        SourceError: it does not fit; the tree is as it was.
    """
    _change(tree, patch, reverse=False)


def revert_patch(tree: Path, patch: Path) -> None:
    """Take a patch (-p1) back out of ``tree``.

    Raises:
        SourceError: it is not (or not as such) in the tree; the tree is as it was.
    """
    _change(tree, patch, reverse=True)


def _change(tree: Path, patch: Path, reverse: bool, fuzz: int = 0) -> None:
    tried = _patch(tree, patch, reverse, dry_run=True, fuzz=fuzz)
    if tried.returncode == 0:
        tried = _patch(tree, patch, reverse, dry_run=False, fuzz=fuzz)
    if tried.returncode != 0:
        verb = "reverted in" if reverse else "applied to"
        raise SourceError(f"{patch.name} cannot be {verb} {tree}: {_last_line(tried.stdout) or 'patch failed'}")


def _patch(tree: Path, patch: Path, reverse: bool, dry_run: bool, fuzz: int = 0) -> subprocess.CompletedProcess[str]:
    # With fuzz, patch(1) would find a place for what is applied already.
    command = ["patch", "-p1", "--force", f"--fuzz={fuzz}", "--no-backup-if-mismatch", "--reject-file=-", "-s"]
    command += ["-R"] * reverse + ["--dry-run"] * dry_run + ["-i", str(patch.resolve())]
    return _run(command, cwd=tree)


# --- the cache -----------------------------------------------------------------------------------------------------


def _file_name(version: str) -> str:
    return version.replace(":", "%3a")


def _cached(cache: Path, package: str, version: str | None) -> str | None:
    """The version to take without asking the mirror, if there is one."""
    found = [path.parent.name.replace("%3a", ":") for path in (cache / package).glob("*/complete")]
    if version is None:
        return max(found, key=_version_key, default=None)
    if version in found:
        return version
    instead = _instead(cache, package, version)
    return instead.read_text().strip() if instead.exists() else None


def _instead(cache: Path, package: str, version: str) -> Path:
    """The note that says which version was taken for one that was not there."""
    return cache / package / f"instead-of-{_file_name(version)}"


def _fetch_newest(cache: Path, package: str, version: str | None, etc: Path, log: Log) -> str:
    """Fetch the version asked for, otherwise the newest that the mirror really has; returns which.

    An index may name files that are gone (or not yet there), so lower versions are tried until one comes.
    """
    environment = _private_apt(cache, etc, log)
    listed = _run(["apt-cache", "showsrc", "--only-source", package], env=environment)
    versions: set[str] = set(re.findall(r"^Version: (\S+)$", listed.stdout, re.MULTILINE))
    if not versions:
        raise SourceError(
            f"the configured Debian archives have no source package {package}; check /etc/apt/sources.list*"
        )
    order = sorted(versions, key=_version_key, reverse=True)
    if version in versions:
        order = [version, *(other for other in order if other != version)]
    reasons: list[str] = []
    for candidate in order:
        log(f"fetching the source of {package} {candidate}")
        reason = _download(package, candidate, cache / package / _file_name(candidate), environment)
        if reason is None:
            if version not in (None, candidate):
                _instead(cache, package, str(version)).write_text(candidate + "\n")
            return candidate
        log(f"{package} {candidate} is in the index but not on the mirror ({reason})")
        reasons.append(reason)
    raise SourceError(f"cannot fetch the source of {package} {order[0]}: {reasons[0]}; is the mirror up?")


def _download(package: str, version: str, folder: Path, environment: dict[str, str]) -> str | None:
    """Download and unpack into ``folder``; returns None, or why the archive did not give it."""
    if (folder / "complete").exists():
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["apt-get", "source", "--download-only", "--only-source", "-qq", f"{package}={version}"]
    got = _run(command, cwd=folder, env=environment)
    dsc = list(folder.glob("*.dsc"))
    if got.returncode != 0 or len(dsc) != 1:
        errors = [line for line in got.stdout.splitlines() if line.startswith("E: ")]
        shutil.rmtree(folder)
        reason = errors[0].removeprefix("E: ") if errors else _last_line(got.stdout) or "no .dsc came"
        return re.sub(r"Failed to fetch \S+/(\S+)\s+(.*?)( \[IP: .*)?$", r"\1: \2", reason)
    _unpack(dsc[0], folder / "tree")
    (folder / "complete").touch()
    return None


def _unpack(dsc: Path, tree: Path, *options: str) -> None:
    done = _run(["dpkg-source", *options, "-x", str(dsc), str(tree)], cwd=dsc.parent)
    if done.returncode != 0:
        raise SourceError(f"cannot unpack {dsc.name}: {_last_line(done.stdout)}")


def _series(patches: Path) -> list[str]:
    lines = (patches / "series").read_text().splitlines() if (patches / "series").exists() else []
    return [line.split("#")[0].split()[0] for line in lines if line.split("#")[0].strip()]


# --- the private apt configuration -----------------------------------------------------------------------------------


def _private_apt(cache: Path, etc: Path, log: Log) -> dict[str, str]:
    """Set up apt below ``cache`` and read the indexes; returns the environment in which apt commands use it."""
    root = cache / "apt"
    environment = {**os.environ, "LC_ALL": "C", "APT_CONFIG": str(root / "apt.conf")}
    changed = max(path.stat().st_mtime for path in (etc, *etc.glob("sources.list*"), *etc.glob("sources.list.d/*")))
    if (root / "updated").exists():
        updated_at = (root / "updated").stat().st_mtime
        if max(changed, time.time() - _INDEX_AGE) < updated_at:
            return environment
    for part in ("lists/partial", "archives/partial", "parts", "sources.d"):
        (root / part).mkdir(parents=True, exist_ok=True)
    one_line, stanzas = debian_sources(etc, _codename())
    (root / "sources.list").write_text("".join(line + "\n" for line in one_line))
    (root / "sources.d" / "debian.sources").write_text("\n".join(stanzas))
    # Proxies, timeouts and the like are the system's; its hooks and index targets are not ours to run.
    dumped = _run(["apt-config", "dump", "Acquire"]).stdout.splitlines()
    acquire = [line for line in dumped if not line.startswith(("Acquire::IndexTargets", "Acquire::Languages"))]
    configuration = [
        *(line for line in acquire if re.fullmatch(r'Acquire(::[^\s"]+) "[^"]*";', line)),
        'Acquire::Languages "none";',
        f'Dir::State "{root}";',
        f'Dir::State::lists "{root}/lists";',
        'Dir::State::status "/var/lib/dpkg/status";',
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
    log("reading the source indexes of the configured Debian archives")
    updated = _run(["apt-get", "update", "-qq"], env=environment)
    if not any((root / "lists").glob("*_Sources*")):
        reason = _last_line(updated.stdout) or "no index came"
        raise SourceError(
            f"cannot read the source indexes of the Debian archives: {reason}; check the network and /etc/apt"
        )
    (root / "updated").touch()
    return environment


def debian_sources(etc: Path, codename: str) -> tuple[list[str], list[str]]:
    """The deb-src side of Debian's own archives among the configured ones: (one-line entries, deb822 stanzas).

    Only suites of the running release count (other archives name theirs otherwise), and only their main component.

    Raises:
        SourceError: none is configured.
    """
    suites = {codename, f"{codename}-updates", f"{codename}-security", f"{codename}/updates"}
    suites |= {suite.replace(codename, "stable") for suite in suites}
    lines: list[str] = []
    for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))):
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = re.match(r"deb(?:-src)?\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.split("#")[0].strip())
            if entry and entry[3] in suites and "main" in entry[4].split():
                lines.append(f"deb-src {entry[1] or ''}{entry[2]} {entry[3]} main")
    stanzas: list[str] = []
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                key.lower(): value for key, value in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            }
            wanted = [suite for suite in fields.get("suites", "").split() if suite in suites]
            off = fields.get("enabled", "yes").strip().lower() in ("no", "false", "0")
            if off or not wanted or "main" not in fields.get("components", "").split():
                continue
            fields |= {"types": " deb-src", "suites": " " + " ".join(wanted), "components": " main"}
            fields.pop("architectures", None)
            stanzas.append("".join(f"{key.title()}:{value}\n" for key, value in fields.items()))
    if not lines and not stanzas:
        raise SourceError(f"no Debian archive for {codename} is configured in {etc}; add one to {etc}/sources.list")
    return list(dict.fromkeys(lines)), list(dict.fromkeys(stanzas))


def _codename() -> str:
    release = Path("/etc/os-release").read_text()
    found = re.search(r'^VERSION_CODENAME="?([\w-]+)', release, re.MULTILINE)
    if not found:
        raise SourceError("this system does not say which Debian release it is (VERSION_CODENAME in /etc/os-release)")
    return found[1]


# --- small things --------------------------------------------------------------------------------------------------


def _compare(left: str, right: str) -> int:
    for relation, result in (("lt", -1), ("gt", 1)):
        if subprocess.run(["dpkg", "--compare-versions", left, relation, right], check=False).returncode == 0:
            return result
    return 0


_version_key = functools.cmp_to_key(_compare)


def _run(
    command: Sequence[str], cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=env or {**os.environ, "LC_ALL": "C"},
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or [""])[-1]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Fetch a package by hand and print where its tree is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("package")
    parser.add_argument("version", nargs="?")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--copy", type=Path, metavar="DIR", help="make a tree of your own there")
    parser.add_argument(
        "--without", action="append", default=[], metavar="PATCH", help="leave a Debian patch out of the copy"
    )
    options = parser.parse_args()
    try:
        source = fetch(options.package, options.cache, options.version)
        print(source.copy(options.copy, options.without) if options.copy else source.tree)
    except SourceError as error:
        print(f"debsource: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
