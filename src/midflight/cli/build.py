"""midflight build: make a signed hotpatch from a fix."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight.cli.output import Output, Styled
from midflight.errors import InputError, Refused

if TYPE_CHECKING:
    from midflight.forge.forge import ForgeRequest, ForgeResult, RefusedWithFindings

HELP = """\
Makes a signed hotpatch. The source tree is built without and with the fix by its own build command, under a compiler
wrapper that adds -ffunction-sections -fdata-sections and records every object. Functions that differ are found in the
binary that runs, every byte of them proven, and linked for exactly that binary. Your tree is only read; the builds run
in a copy.

What cannot be put into a living process safely is refused, with its reason and what to do instead. All findings are
shown at once. Some can be overridden with a written reason, which stays in the hotpatch.

Builds are kept (--cache): another fix of the same tree builds only what it touches."""

EXAMPLES = """\
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
    what.add_argument("--source", type=Path, required=True, metavar="DIR", help="the source tree without the fix")
    what.add_argument("--fix", type=Path, required=True, metavar="FIX", help="a patch file (-p1), or a second tree")
    what.add_argument("--make", required=True, metavar="CMD", help="the build command, run by sh in a copy of the tree")
    what.add_argument(
        "--image", required=True, metavar="PATH", help="the program or library that it makes, in the tree"
    )
    what.add_argument(
        "--running", type=Path, metavar="FILE", help="the binary that runs (default: a plain build of the unfixed tree)"
    )
    what.add_argument("-j", "--jobs", type=int, metavar="N", help="parallel jobs, where the build command says nothing")
    what.add_argument("--cache", type=Path, metavar="DIR", help="where builds are kept (default: ~/.cache/midflight)")
    what.add_argument("--no-cache", action="store_true", help="keep nothing")


def _add_hotpatch(parser: argparse.ArgumentParser) -> None:
    hotpatch = parser.add_argument_group("the hotpatch")
    hotpatch.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the hotpatch to write")
    hotpatch.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key that signs it")
    hotpatch.add_argument("--name", default="", metavar="NAME", help="its series (default: the name of the image)")
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
    from midflight.trust.keys import load_private_key

    overrides = parse_overrides(args.override)
    check_reviewer(args.reviewer)
    args.name = args.name or Path(args.image).name
    args.cve = list(dict.fromkeys(args.cve))
    _check_labels(args)
    if not args.output.absolute().parent.is_dir():
        raise InputError(f"the folder of {args.output} does not exist; make it first")
    signer = load_private_key(args.key)

    from midflight.forge.forge import RefusedWithFindings, forge
    from midflight.patch.hotpatch import write_hotpatch

    with work_folder(args) as work:
        try:
            made = forge(request_of(args, work, overrides), out.progress)
        except RefusedWithFindings as refused:
            out.progress_done()
            out.result({"written": None, "report": dict(refused.report)})
            _show_findings(refused, out)
            raise Refused(_refused(refused, out.json)) from None
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

    labels = (args.name, args.sequence, args.description, tuple(args.cve))
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
        source=args.source,
        fix=args.fix,
        make=args.make,
        image=args.image,
        work=work,
        running=args.running,
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
    )


def _refused(refused: RefusedWithFindings, for_programs: bool) -> str:
    """The one line: everything for programs; people have the findings above it."""
    if for_programs:
        return str(refused)
    codes = ", ".join(dict.fromkeys(item.code for item in refused.findings))
    count = "one finding" if len(refused.findings) == 1 else f"{len(refused.findings)} findings"
    return f"refused: {count} ({codes}); no hotpatch was written"


def _show_findings(refused: RefusedWithFindings, out: Output) -> None:
    import textwrap

    for item in refused.findings:
        out.line(Styled(item.code, "bad"), "  ", Styled(f"{item.file}: " if item.file else "", "dim"), item.symbol)
        for text in (item.reason, item.remedy):
            sentence = text[:1].upper() + text[1:]
            for line in textwrap.wrap(sentence, out.width - 7, break_on_hyphens=False):
                out.line(f"       {line}")


def _show(made: ForgeResult, out: Output) -> None:
    from midflight.forge.matchreport import summary

    report: Mapping[str, Any] = made.report
    manifest = made.manifest
    title = ", ".join(manifest.cves) or manifest.description
    out.line(Styled(f"{manifest.name} {manifest.sequence}", "bold"), f"  {title}")
    out.line(f"baseline  {report['image']}  build-id {report['build_id']}")
    rows = [
        (item["name"], item["file"], f"{item['size_before']}", f"{item['size_after']}", item["matched_by"] or "-")
        for item in report["functions"]
    ]
    out.table(["FUNCTION", "FILE", "BYTES", "NEW", "FOUND BY"], rows)
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
