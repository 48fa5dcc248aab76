"""midflight assess: can a fix be hotpatched on this binary, what forbids it, and what would allow it."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midflight.cli import build
from midflight.cli.findings import show_finding, wrapped
from midflight.cli.output import Output, Style, Styled
from midflight.errors import InputError, Refused

if TYPE_CHECKING:
    from midflight.forge.review.assessment import Assessment, Verdict
    from midflight.forge.review.reviewing import Evidence

HELP = """\
Tells whether a fix can be hotpatched on the binary that runs, which finding forbids it, and what would allow it. Takes
what midflight build takes, does all that it does, and writes no hotpatch.

A first answer from the text of the fix comes at once. Then the source is built without and with the fix (builds are
kept, so the second time takes seconds), every function that changes is found in the binary, and everything that can be
told is told: refusals, findings that a person must sign off, warnings, notes, and what no tool can know.

--html writes a page for reviewers: the findings, each changed function before and after, and a place to sign."""

EXAMPLES = """\
midflight assess --source nginx-1.22.1 --fix CVE.patch --make './configure && make -j2' --image objs/nginx \\
    --running /usr/sbin/nginx --html nginx.html

midflight assess --source lib --fix lib-fixed --make make --image libx.so.1 --json | jq -r .verdict"""

EXIT_STATUS = """\
0  it can be hotpatched
1  an error of this machine (no space, no permission)
2  bad usage, the fix does not apply, or a build failed
3  refused: it cannot be hotpatched
4  it can be hotpatched after sign-off: some findings need a person's written reason
5  unknown: nothing is built yet, and --no-build was given"""

_STATUS: dict[Verdict, int] = {"patchable": 0, "refused": 3, "sign-off": 4, "unknown": 5}
_STYLES: dict[Verdict, Style] = {"patchable": "good", "refused": "bad", "sign-off": "warn", "unknown": "warn"}
_HEADINGS: dict[str, tuple[str, Style]] = {
    "refusal": ("Forbids it", "bad"),
    "sign-off": ("Needs a person's sign-off", "warn"),
    "warning": ("Warnings", "warn"),
    "note": ("Notes", "dim"),
}

_FUNCTIONS_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    build.add_inputs(parser)
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--html", type=Path, metavar="FILE", help="write a page for reviewers")
    answer.add_argument(
        "--no-build", action="store_true", help="answer from the text of the fix and from what is built already"
    )
    build.add_decisions(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    overrides = build.parse_overrides(args.override)
    build.check_reviewer(args.reviewer)
    build.check_inputs(args)
    if args.html is not None and not args.html.absolute().parent.is_dir():
        raise InputError(f"the folder of {args.html} does not exist; make it first")
    args.name, args.sequence, args.description, args.cve = "", 1, "", []

    from midflight.forge.capture.run import NotBuilt, no_builds
    from midflight.forge.forge import RefusedWithFindings
    from midflight.forge.review.assessment import assess, first_line, refused, unknown

    evidence: tuple[Evidence, ...] = ()
    with build.work_folder(args) as work:
        told: list[Mapping[str, Any]] = []

        def tell(answer: Mapping[str, Any]) -> None:
            told[:] = [answer]
            out.progress(first_line(answer))

        try:
            if args.debian is None:
                tell(_first_answer(args.source, Path(args.fix)))
            with no_builds() if args.no_build else nullcontext():
                made = build.forge_as_asked(args, work, overrides, out, tell)
            evidence, result = made.evidence, assess(made.report)
        except RefusedWithFindings as error:
            evidence, result = error.evidence, assess(error.report)
        except Refused as error:
            result = refused(str(error))
        except NotBuilt:
            result = unknown("nothing is built yet; leave --no-build out")
        result = replace(result, preview=told[0] if told else None)
        out.progress_done()
        if args.html is not None:
            from midflight.cli.assess_page import page

            args.html.write_text(page(result, evidence, args.reviewer), encoding="utf-8")
    out.result(result.document())
    show(result, out)
    if args.html is not None:
        out.line()
        out.line("page      ", Styled(str(args.html), "bold"))
    return _STATUS[result.verdict]


def _first_answer(source: Path, fix: Path) -> Mapping[str, Any]:
    from midflight.forge.capture.source import read_fix
    from midflight.forge.review.assessment import preview
    from midflight.forge.review.touched import touched

    tree = source.resolve()
    if not tree.is_dir():
        raise InputError(f"the source tree {source} is no folder; give the folder in which the build command runs")
    return preview(touched(tree, read_fix(tree, fix).changes))


def show(result: Assessment, out: Output) -> None:
    """Print the answer for people: the verdict, then the findings, each with what would allow it."""
    out.line(Styled(result.summary, _STYLES[result.verdict]))
    from midflight.forge.review.assessment import grouped

    for kind, (heading, style) in _HEADINGS.items():
        found = grouped([item for item in result.findings if item["kind"] == kind])
        if found:
            out.line()
            out.line(Styled(f"{heading} ({len(found)})", "bold"))
        for item in found:
            show_finding(item, "good" if item["overridden"] else style, out)
    for image in result.images:
        out.line()
        _show_image(image, out)
    if result.verdict == "unknown" and result.preview is not None:
        out.line()
        out.line(Styled("From the text of the fix alone", "bold"))
        for hint in result.preview["likely"] or ["nothing speaks against it"]:
            wrapped(hint, "  ", out)
    out.line()
    out.line(Styled("What this cannot know", "bold"))
    for limit in result.document()["cannot_know"]:
        wrapped(limit, "- ", out)


def _show_image(image: Mapping[str, Any], out: Output) -> None:
    from midflight.forge.matching.matchreport import summary

    out.line(Styled(image["image"], "bold"), f"  build-id {image['build_id']}")
    rows = [
        (item["name"], item["file"], f"{item['size_before']}", f"{item['size_after']}")
        for item in image["functions"][:_FUNCTIONS_SHOWN]
    ]
    if rows:
        out.table(["FUNCTION", "FILE", "BYTES", "NEW"], rows)
    if len(image["functions"]) > len(rows):
        out.line(f"… and {len(image['functions']) - len(rows)} more functions (--html, --json)")
    for line in textwrap.wrap(f"matched   {summary(image['match'])}", out.width, subsequent_indent=" " * 10):
        out.line(line)
    out.line(f"payload   {image['payload']['size']:,} bytes; sign-off of {image['review']['digest'][:16]}…")
