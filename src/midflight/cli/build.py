"""midflight build: make a signed hotpatch from a fix."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight.cli.findings import show_finding
from midflight.cli.output import Output, Styled
from midflight.errors import InputError, Refused

if TYPE_CHECKING:
    from midflight.forge.forge import ForgeRequest, ForgeResult, RefusedWithFindings
    from midflight.trust.keys import PrivateKey

HELP = """\
Makes a signed hotpatch. The source is built without and with the fix, under a compiler wrapper that adds
-ffunction-sections -fdata-sections and records every object. Functions that differ are found in the binary that runs,
every byte of them proven, and linked for exactly that binary.

With --debian everything comes from the Debian archives that this machine is configured for: the source of the version
that is installed (or named), its fix, its build dependencies (installed when this is run by root; they stay), and the
files of its binary packages, which are what runs. The package's own rules build it. When the archive has that source no
more, it is made from a newer one by taking out the patches that came since; the match with what runs proves that it is
the right one. Every library and program of the package that the fix changes becomes a target of the one hotpatch.

With --source a tree of your own is built by its own build command, in a copy.

What cannot be put into a living process safely is refused, with its reason and what to do instead. All findings are
shown at once. Some can be overridden with a written reason, which stays in the hotpatch.

Builds are kept (--cache): another fix of the same source compiles only what it touches.

Without --key the hotpatch is signed with a key of this machine, which is made when it is first needed, and which this
machine trusts from then on: /etc/midflight/signing.key for root, ~/.config/midflight/signing.key otherwise."""

EXAMPLES = """\
midflight build --debian expat --fix CVE-2024-45490 -o expat.hotpatch

midflight build --debian libssl3=3.0.15-1~deb12u1 --fix =3.0.16-1~deb12u1 --image libcrypto.so.3 -o ssl.hotpatch

midflight build --source nginx-1.22.1 --fix CVE.patch --make './configure && make -j2' --image objs/nginx \\
    --running /usr/sbin/nginx --cve CVE-2026-42945 --key release.key -o nginx-1.hotpatch

midflight build --source lib --fix lib-fixed --make 'cmake -B b && make -C b' --image b/libx.so.1 \\
    --override 'MF110:limits=read again on every reload' --key release.key -o libx-3.hotpatch --sequence 3"""

EXIT_STATUS = """\
0  the hotpatch is written
1  an error of this machine (no space, no permission)
2  bad usage, the fix does not apply, or a build failed; nothing is written
3  refused: the change cannot be hotpatched safely; nothing is written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add_inputs(parser)
    _add_hotpatch(parser)
    add_decisions(parser)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what is built; ``midflight assess`` has them as well."""
    what = parser.add_argument_group("what to build")
    source = what.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--debian",
        metavar="PKG[=VERSION]",
        help="a source or binary package of Debian (default version: the installed one, else the newest)",
    )
    source.add_argument("--source", type=Path, metavar="DIR", help="a source tree without the fix")
    what.add_argument(
        "--fix",
        required=True,
        metavar="FIX",
        help="a patch file (-p1), or a second tree; with --debian also a CVE id, or =VERSION for the difference to a "
        "newer version",
    )
    what.add_argument("--make", metavar="CMD", help="with --source: the build command, run by sh in a copy of the tree")
    what.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH",
        help="with --source: the program or library that it makes, in the tree; with --debian: patch this file of the "
        "package alone (name or soname; may be repeated)",
    )
    what.add_argument(
        "--running",
        metavar="FILE",
        help="the binary that runs (default: with --debian the files of the package, with --source a plain build of "
        "the unfixed tree); 'plain' asks for a plain build",
    )
    what.add_argument(
        "--symbols",
        type=Path,
        metavar="FILE.pdb",
        help="with --source: the PDB of a Windows binary that runs (default: the one beside it, if it has no symbols)",
    )
    what.add_argument(
        "--build-root",
        type=Path,
        metavar="DIR",
        help="with --debian: build in a private root there, made when it does not exist (needs root and mmdebstrap); "
        "build dependencies go into it, and nothing on this machine changes",
    )
    what.add_argument("-j", "--jobs", type=int, metavar="N", help="parallel jobs (default: with --debian all CPUs)")
    what.add_argument("--cache", type=Path, metavar="DIR", help="where builds are kept (default: ~/.cache/midflight)")
    what.add_argument("--no-cache", action="store_true", help="keep nothing")


def _add_hotpatch(parser: argparse.ArgumentParser) -> None:
    hotpatch = parser.add_argument_group("the hotpatch")
    hotpatch.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the hotpatch to write")
    hotpatch.add_argument(
        "--key", type=Path, metavar="FILE", help="the private key that signs it (default: this machine's)"
    )
    hotpatch.add_argument("--name", default="", metavar="NAME", help="its series (default: the image or package)")
    hotpatch.add_argument(
        "--sequence", type=int, default=1, metavar="N", help="replaces lower numbers of the series (default 1)"
    )
    hotpatch.add_argument("--cve", action="append", default=[], metavar="ID", help="what it closes; may be repeated")
    hotpatch.add_argument("--description", default="", metavar="TEXT", help="one line for people")


def add_decisions(parser: argparse.ArgumentParser) -> None:
    """Declare what a reviewer decides; ``midflight assess`` has them as well."""
    safety = parser.add_argument_group("decisions of a reviewer")
    safety.add_argument(
        "--policy",
        choices=("strict", "entry"),
        default="strict",
        help="strict (default): no thread may be in a replaced function; entry: old and new may run side by side",
    )
    safety.add_argument("--policy-reason", metavar="TEXT", help="why that is safe; needed with --policy entry")
    safety.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="CODE:SYMBOL=REASON",
        help="override one finding, and say why; may be repeated",
    )
    safety.add_argument("--reviewer", metavar="'NAME <MAIL>'", help="who signs off the findings that need a person")
    safety.add_argument(
        "--hooks", type=Path, metavar="FILE.c", help="C functions to run before and after apply and revert"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    overrides = parse_overrides(args.override)
    check_reviewer(args.reviewer)
    check_inputs(args)
    if args.debian is None:
        args.name = args.name or Path(args.image[0]).name
    args.cve = list(dict.fromkeys(args.cve))
    _check_labels(args)
    if not args.output.absolute().parent.is_dir():
        raise InputError(f"the folder of {args.output} does not exist; make it first")
    signer = _signer(args, out)

    from midflight.forge.forge import RefusedWithFindings
    from midflight.patch.hotpatch import write_hotpatch

    with work_folder(args) as work:
        try:
            made = forge_as_asked(args, work, overrides, out)
        except RefusedWithFindings as refused:
            out.progress_done()
            out.result({"written": None, "report": dict(refused.report)})
            found = _grouped(refused)
            for item in found:
                show_finding(item, "bad", out)
            raise Refused(str(refused) if out.json else _refused(found)) from None
    out.progress_done()
    digest = write_hotpatch(args.output, made.manifest, made.payloads, signer)
    out.result(
        {
            "written": str(args.output),
            "sha256": digest,
            "name": made.manifest.name,
            "sequence": made.manifest.sequence,
            "key_id": signer.key_id,
            "report": dict(made.report),
        }
    )
    _show(made, out)
    out.line("written   ", Styled(str(args.output), "bold"), f"  sha256 {digest[:16]}…")
    out.line(f"signed by {signer.key_id[:16]}…")
    return 0


def check_inputs(args: argparse.Namespace) -> None:
    """Raises:
    InputError: the options of --source and --debian are mixed up, or one is missing.
    """
    if args.debian is not None:
        if args.make is not None:
            raise InputError("--make belongs to --source; with --debian the package's own rules build it")
        if args.symbols is not None:
            raise InputError("--symbols belongs to --source; Debian's packages have no PDB")
        return
    if args.make is None or not args.image:
        raise InputError("--source needs --make and --image: how it is built, and what comes of it")
    if len(args.image) > 1:
        raise InputError("with --source give one --image; several hotpatches can be in force together")
    if not Path(args.fix).exists():
        raise InputError(f"the fix {args.fix} does not exist; give a patch file or a second source tree")


def _signer(args: argparse.Namespace, out: Output) -> PrivateKey:
    from midflight.trust.keys import load_private_key
    from midflight.trust.store import default_signer

    if args.key is not None:
        return load_private_key(args.key)
    key, path, made = default_signer()
    if made:
        out.line(f"made a signing key: {path}; this machine trusts it ({path.parent}/trust.d/local.pub)")
    return key


def forge_as_asked(
    args: argparse.Namespace,
    work: Path,
    overrides: Mapping[tuple[str, str], str],
    out: Output,
    first: Callable[[Mapping[str, Any]], None] = lambda answer: None,
) -> ForgeResult:
    """Make the contents of the hotpatch that the options ask for: of a tree, or of a package.

    ``first`` is told what the text of a package's fix alone tells, before anything is built.
    """
    if args.debian is None:
        from midflight.forge.forge import forge

        return forge(request_of(args, work, overrides), out.progress)
    from midflight.cli.packages import package_request, package_source
    from midflight.forge.packages.forging import forge_package

    return forge_package(
        package_source(args, work, out),
        replace(package_request(args, work), first=first),
        request_of(args, work / "builds", overrides),
        out.progress,
    )


def parse_overrides(words: Sequence[str]) -> dict[tuple[str, str], str]:
    """``CODE:SYMBOL=REASON`` words as {(code, symbol): reason}.

    Raises:
        InputError: a word is not of this form, its code does not exist, or it is there twice.
    """
    found: dict[tuple[str, str], str] = {}
    for word in words:
        match = re.fullmatch(r"(MF\d{3}):([^=]+)=(.*\S.*)", word, re.DOTALL)
        if match is None:
            raise InputError(f"--override {word!r} is not CODE:SYMBOL=REASON, as in 'MF110:table=read on every reload'")
        code, symbol, reason = match.groups()
        from midflight.forge.refusals import REFUSALS

        if code not in REFUSALS:
            raise InputError(f"--override {word!r}: there is no {code}; docs/reference/refusals.md has all codes")
        if (code, symbol) in found:
            raise InputError(f"--override has {code} for {symbol} twice; give one reason")
        found[code, symbol] = reason.strip()
    return found


def check_reviewer(text: str | None) -> None:
    """Raises:
    InputError: it is no name with an address.
    """
    from midflight.patch.encoding import reviewer_name
    from midflight.patch.fields import FieldError

    if text is not None:
        try:
            reviewer_name(text)
        except FieldError as error:
            raise InputError(f"--reviewer {error.reason}") from None


def _check_labels(args: argparse.Namespace) -> None:
    """Let the format itself look at what the author wrote, before anything is built for minutes.

    Raises:
        InputError: a name, number or text that a hotpatch cannot have.
    """
    from midflight.patch.encoding import decode_manifest, encode_manifest
    from midflight.patch.fields import FieldError
    from midflight.patch.manifest import SCHEMA_VERSION, Manifest

    labels = (args.name or "package", args.sequence, args.description, tuple(args.cve))
    manifest = Manifest(SCHEMA_VERSION, *labels, "2000-01-01T00:00:00Z", "midflight", "none", "0" * 64, ())
    try:
        decode_manifest(encode_manifest(manifest))
    except FieldError as error:
        option = {"name": "--name", "sequence": "--sequence", "description": "--description", "cves": "--cve"}
        field = re.search(r"\w+", error.path)
        if field and field[0] in option:
            raise InputError(f"{option[field[0]]} {error.reason}") from None


@contextmanager
def work_folder(args: argparse.Namespace) -> Iterator[Path]:
    if args.no_cache and args.cache:
        raise InputError("--cache and --no-cache exclude each other")
    if args.no_cache:
        with tempfile.TemporaryDirectory(prefix="midflight-build-") as folder:
            yield Path(folder)
        return
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "midflight"
    yield (args.cache or default).absolute()


def request_of(args: argparse.Namespace, work: Path, overrides: Mapping[tuple[str, str], str]) -> ForgeRequest:
    from midflight.forge.forge import ForgeRequest

    return ForgeRequest(
        source=args.source or Path(),
        fix=Path(args.fix),
        make=args.make or "",
        image="".join(args.image[:1]),
        work=work,
        running=None if args.debian is not None or args.running in (None, "plain") else Path(args.running),
        name=args.name,
        sequence=args.sequence,
        description=args.description,
        cves=tuple(args.cve),
        policy=args.policy,
        policy_reason=args.policy_reason,
        overrides=overrides,
        reviewer=args.reviewer,
        hooks=args.hooks,
        jobs=args.jobs,
        symbols=args.symbols,
    )


def _refused(found: Sequence[Mapping[str, Any]]) -> str:
    """The one line for people, who have the findings above it."""
    codes = ", ".join(dict.fromkeys(item["code"] for item in found))
    count = "one finding" if len(found) == 1 else f"{len(found)} findings"
    return f"refused: {count} ({codes}); no hotpatch was written"


def _grouped(refused: RefusedWithFindings) -> Sequence[Mapping[str, Any]]:
    from midflight.forge.review.assessment import grouped

    return grouped([{**asdict(item), "overridden": None} for item in refused.findings])


def _show(made: ForgeResult, out: Output) -> None:
    report: Mapping[str, Any] = made.report
    manifest = made.manifest
    title = ", ".join(manifest.cves) or manifest.description
    for note in report.get("notes", ()):
        out.line(Styled("note      ", "warn"), note)
    out.line(Styled(f"{manifest.name} {manifest.sequence}", "bold"), f"  {title}")
    for one in report.get("images", [report]):
        _show_image(one, out)


def _show_image(report: Mapping[str, Any], out: Output) -> None:
    from midflight.forge.matching.matchreport import summary
    from midflight.forge.refusals import REFUSALS

    out.line(f"baseline  {report['image']}  build-id {report['build_id']}")
    witnesses = {item["vaddr"]: item["witnesses"] for item in report["match"]["addresses"]}
    rows = [
        (
            item["name"],
            item["file"],
            f"{item['size_before']}",
            f"{item['size_after']}",
            re.sub(r",.*| from .*", "", item["matched_by"] or "-"),
            f"{witnesses.get(item['vaddr'], '-')}",
        )
        for item in report["functions"]
    ]
    out.table(["FUNCTION", "FILE", "BYTES", "NEW", "FOUND BY", "WITNESSES"], rows)
    out.line("matched   ", summary(report["match"]))
    if report["new"]:
        out.line("new       ", ", ".join(report["new"]))
    payload = report["payload"]
    out.line(
        f"payload   {payload['size']:,} bytes, {payload['relocations']} relocations; {report['objects']['changed']} of "
        f"{report['objects']['linked']} objects changed"
    )
    for item in report["findings"]:
        if item["overridden"]:
            out.line(Styled("override  ", "warn"), f"{item['code']} {item['symbol']}: {item['overridden']}")
        elif item["kind"] == "warning":
            out.line(Styled("warning   ", "warn"), f"{item['code']} {item['symbol']}: {item['reason']}")
    notes = Counter(item["code"] for item in report["findings"] if item["kind"] == "note")
    if notes:
        counted = ", ".join(f"{count} {REFUSALS[code].title.lower()} ({code})" for code, count in sorted(notes.items()))
        out.line("notes     ", f"{counted}; midflight assess shows them")
