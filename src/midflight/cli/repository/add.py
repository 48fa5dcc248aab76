"""midflight repo add: stage a hotpatch or a baseline."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from midflight.cli.output import Output
from midflight.cli.repository import shared
from midflight.errors import InputError

if TYPE_CHECKING:
    from midflight.trust.content import Description
    from midflight.trust.repository import Repository

_ONE_FIX = re.compile(r"(?i)(^|[^0-9])(19|20)[0-9]{2}([^0-9]|$)|cve")
"""A year or a CVE in a name."""
HELP = """\
Stages a piece of content. A hotpatch says itself what it is and for which images; of a Debian package, name, version
and architecture are read. Any other file is a baseline too, when its name, version and architecture are given.

A series is named after the package that it changes, and its hotpatches and baselines share one growing sequence: by
that the server knows what contains what. A sequence that does not grow is refused; names that do not fit are said.

Where the repository says whose hotpatches count (midflight repo server --hotpatch-key), the signature of a hotpatch is
verified before it is staged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    shared.add_folder(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="a hotpatch, a .deb, or another file")
    parser.add_argument("--path", metavar="PATH", help="its path in the repository; default: from kind and name")
    parser.add_argument(
        "--classification", choices=("security", "non-security"), default="security", help="default: %(default)s"
    )
    parser.add_argument(
        "--severity",
        choices=("critical", "high", "medium", "low", "none", "unknown"),
        default="unknown",
        help="default: %(default)s",
    )
    parser.add_argument("--cvss", metavar="SCORE", help="the highest CVSS base score, like 9.8")
    parser.add_argument("--cve", metavar="CVE", action="append", default=[], help="default: those of the hotpatch")
    parser.add_argument("--description", metavar="TEXT", help="one paragraph for administrators")
    parser.add_argument(
        "--supersedes", metavar="NAME", action="append", default=[], help="other content that this makes unnecessary"
    )
    parser.add_argument(
        "--image", metavar="BUILD-ID", action="append", default=[], help="an image that a baseline brings"
    )
    parser.add_argument("--name", metavar="NAME", help="of a baseline; default: the package's")
    parser.add_argument(
        "--sequence", metavar="N", type=int, help="of a baseline; default: one more than the last of either kind"
    )
    parser.add_argument("--version", metavar="VERSION", help="of a baseline that is no .deb")
    parser.add_argument("--architecture", metavar="ARCH", help="of a baseline that is no .deb, like amd64")


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    repository = shared.opened(args)
    if args.version or not _is_hotpatch(args.file):
        about, path = _baseline(args, repository)
    else:
        about, path = _hotpatch(args, repository, out)
    _check_series(repository, about, args.path or path, out)
    content = repository.add(args.file, args.path or path, about, shared.now())
    out.line(f"added   {content.path}  {content.length:,} bytes")
    out.result(
        {
            "path": content.path,
            "sha256": content.sha256,
            "length": content.length,
            "kind": about.kind,
            "staged": shared.show_staged(repository, out),
        }
    )
    return 0


def _is_hotpatch(file: Path) -> bool:
    try:
        with open(file, "rb") as opened:
            return opened.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; check the path") from None


def _hotpatch(args: argparse.Namespace, repository: Repository, out: Output) -> tuple[Description, str]:
    from midflight.patch.hotpatch import read_hotpatch, read_unverified
    from midflight.trust.content import Description

    for option in ("name", "sequence", "version", "architecture", "image"):
        if getattr(args, option):
            raise InputError(f"--{option} is for baselines; a hotpatch says it itself")
    server = repository.server_record()
    if server is not None and server.hotpatch_keys:
        manifest = read_hotpatch(args.file, server.hotpatch_keys).manifest
    else:
        manifest = read_unverified(args.file).manifest
        out.warn(
            f"nobody asked who signed {args.file}: the repository names no keys for hotpatches, so its offline keys "
            "are all that devices ask for; midflight repo server --hotpatch-key demands that signature as well"
        )
    about = Description(
        "hotpatch",
        manifest.name,
        manifest.sequence,
        tuple(target.build_id for target in manifest.targets),
        tuple(args.cve) or manifest.cves,
        args.classification,
        args.severity,
        args.cvss,
        args.description if args.description is not None else manifest.description[:4000],
        tuple(args.supersedes),
    )
    return about, f"hotpatch/{manifest.name}/{manifest.sequence}.hotpatch"


def _baseline(args: argparse.Namespace, repository: Repository) -> tuple[Description, str]:
    from midflight.trust.content import Description, Package
    from midflight.trust.debfile import read_control

    if args.version or args.architecture:
        if not (args.name and args.version and args.architecture):
            raise InputError("a file that is no .deb needs --name, --version and --architecture")
        package = Package("file", args.name, args.version, args.architecture)
        file = args.file.name
    else:
        control = read_control(args.file)
        package = Package("deb", control.package, control.version, control.architecture)
        file = f"{package.name}_{package.version.partition(':')[2] or package.version}_{package.architecture}.deb"
    name = args.name or package.name
    known = [each.about.sequence for each in repository.catalog().contents.values() if each.about.name == name]
    about = Description(
        "baseline",
        name,
        args.sequence or max(known, default=0) + 1,
        tuple(args.image),
        tuple(args.cve),
        args.classification,
        args.severity,
        args.cvss,
        args.description or "",
        tuple(args.supersedes),
        package,
    )
    return about, f"baseline/{name}/{file}"


def _check_series(repository: Repository, about: Description, path: str, out: Output) -> None:
    """See that the content has its place in the series of its package (docs/adr/0074).

    Raises:
        InputError: its sequence is not above all others of the series, those of revoked content too.
    """
    catalog = repository.catalog()
    others = [content.about for content in catalog.contents.values() if content.path != path]
    used = [other.sequence for other in others if other.name == about.name]
    used += [revocation.sequence for revocation in catalog.revoked if revocation.name == about.name]
    if used and about.sequence <= max(used):
        where = "build it with" if about.kind == "hotpatch" else "give"
        raise InputError(
            f"{about.name} {about.sequence} would come after {about.name} {max(used)}: hotpatches and baselines of a "
            f"package share one growing sequence; {where} --sequence {max(used) + 1}"
        )
    if about.package is not None and about.package.name != about.name:
        out.warn(
            f"this baseline of the package {about.package.name} is named {about.name}: the server takes the name for "
            "the package, and devices report packages by their own names; leave out --name"
        )
    elif _ONE_FIX.search(about.name):
        out.warn(
            f"{about.name} reads like the name of one fix, and the next fix could not replace it: name the series "
            "after the package (midflight build --name PACKAGE) and count it on with --sequence"
        )
    split = sorted({other.name for other in others if set(other.images) & set(about.images)} - {about.name})
    if split:
        out.warn(
            f"{about.name} is for an image that {' and '.join(split)} is for too: of two series neither replaces the "
            f"other; a package has one (midflight build --name {split[0]})"
        )
