"""midflight inspect: show what a hotpatch changes, and who signed it; or what a PE image is, and whether it is a
hotpatch of Windows. Interprets nothing but the file itself."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from midflight.cli.inspect_image import inspect_image, is_pe
from midflight.cli.output import Output, Styled, Text, clean
from midflight.errors import InputError
from midflight.patch.encoding import plain
from midflight.patch.hotpatch import Hotpatch, UnverifiedHotpatch, read_hotpatch, read_unverified
from midflight.patch.manifest import Function, Manifest, Override, Target
from midflight.patch.validate import round_up
from midflight.trust.keys import load_public_key

HELP = """\
Shows what a hotpatch changes: the fix, each function before and after, what the new code refers to, the memory it will
take, and what its author decided against the forge's advice.

With --trust the signature is verified first, and a file that none of these keys signed is refused. Without, the file is
shown as UNVERIFIED: everything in it, the signers' names included, is then only what the file says of itself.

A program or DLL of Windows (PE32+) is shown too: its identity, and, when it is itself a hotpatch of Windows, for which
base images it is (CheckSum and TimeDateStamp), its sequence number, how many patches it holds. For reading only."""

EXAMPLES = """\
midflight inspect fix.hotpatch --trust release.pub
midflight inspect fix.hotpatch --json
midflight inspect ntdll_hotpatch.dll
midflight inspect fix.hotpatch --payload 8f2c > payload.bin
  then: objdump -D -b binary -m i386:x86-64 payload.bin"""

EXIT_STATUS = """\
0  the file is well formed (with --trust: and signed by a trusted key)
2  bad usage, or the file is refused"""

_PROTECTION = {"code": "r-x", "rodata": "r--", "data": "rw-"}
_LABEL = 13
"""Columns of the labels on the left."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("file", metavar="FILE", help="the hotpatch file, or a PE image")
    parser.add_argument(
        "--trust",
        metavar="KEY.pub",
        action="append",
        default=[],
        help="a public key that is trusted; may be given several times, one signature is enough",
    )
    parser.add_argument(
        "--payload",
        metavar="BUILD-ID",
        help="write the payload for this build-id (its first digits are enough) to standard output, and nothing else",
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    if is_pe(args.file):
        if args.trust or args.payload is not None:
            raise InputError(f"{args.file} is a PE image, no hotpatch file; --trust and --payload do not go with it")
        return inspect_image(args.file, out)
    hotpatch: Hotpatch | UnverifiedHotpatch
    if args.trust:
        hotpatch = read_hotpatch(args.file, [load_public_key(path) for path in args.trust])
    else:
        hotpatch = read_unverified(args.file)
    if args.payload is not None:
        return _dump(args.file, hotpatch, args.payload, out)
    out.result(document(args.file, hotpatch))
    if not out.json:
        _show(args.file, hotpatch, out)
    return 0


def document(file: str, hotpatch: Hotpatch | UnverifiedHotpatch) -> dict[str, object]:
    """What --json prints; ``manifest`` follows the published schema."""
    return {
        "file": file,
        "sha256": hotpatch.digest,
        "verified": isinstance(hotpatch, Hotpatch),
        "signers": list(hotpatch.signers) if isinstance(hotpatch, Hotpatch) else [],
        "claimed_signers": [] if isinstance(hotpatch, Hotpatch) else list(hotpatch.claimed_signers),
        "memory": {target.build_id: memory(target) for target in hotpatch.manifest.targets},
        "symbols": sorted(hotpatch.symbols),
        "manifest": plain(hotpatch.manifest),
    }


def memory(target: Target) -> int:
    """Bytes that the payload takes in a process, in whole pages; the engine's ledger comes on top."""
    return sum(round_up(segment.size) for segment in target.segments)


def _dump(file: str, hotpatch: Hotpatch | UnverifiedHotpatch, build_id: str, out: Output) -> int:
    found = [target for target in hotpatch.manifest.targets if target.build_id.startswith(build_id.lower())]
    if len(found) != 1:
        known = ", ".join(target.build_id for target in hotpatch.manifest.targets)
        raise InputError(f"{file} has {len(found)} targets with a build-id like {build_id!r}; it has {known}")
    if out.json:
        raise InputError("--payload writes bytes, so it goes with no --json; leave one of them out")
    if sys.stdout.isatty():
        raise InputError("--payload writes bytes, which would disturb the terminal; redirect it to a file")
    sys.stdout.buffer.write(hotpatch.payloads[found[0].payload])
    sys.stdout.buffer.flush()
    return 0


def _show(file: str, hotpatch: Hotpatch | UnverifiedHotpatch, out: Output) -> None:
    manifest = hotpatch.manifest
    if isinstance(hotpatch, UnverifiedHotpatch):
        out.line(Styled("UNVERIFIED: no signature was checked; anybody could have written all of this.", "bad"))
        out.line(Styled("Give --trust KEY.pub to verify it.", "bad"))
        out.line()
    _heading(out, f"{manifest.name} {manifest.sequence}")
    _field(out, "file", f"{file} ({Path(file).stat().st_size:,} bytes)")
    _field(out, "sha256", hotpatch.digest)
    if isinstance(hotpatch, Hotpatch):
        for number, key_id in enumerate(hotpatch.signers):
            _field(out, "" if number else "signed by", key_id, "good")
    elif hotpatch.claimed_signers:
        for number, key_id in enumerate(hotpatch.claimed_signers):
            _field(out, "" if number else "says signed", key_id, "warn")
    else:
        _field(out, "signed by", "nobody", "bad")
    _show_fix(manifest, out)
    for target in manifest.targets:
        out.line()
        _show_target(target, target.build_id in hotpatch.symbols, out)


def _show_fix(manifest: Manifest, out: Output) -> None:
    _field(out, "CVEs", ", ".join(manifest.cves) or "none named")
    _field(out, "description", manifest.description or "none")
    _field(out, "created", f"{manifest.created} by {manifest.builder}")
    _field(out, "compiler", manifest.compiler)
    _field(out, "fix sha256", manifest.fix_sha256)
    if manifest.review is not None:
        _field(out, "reviewed by", manifest.review.reviewer)
        _field(out, "", f"what was signed off: {manifest.review.digest}")


def _show_target(target: Target, symbols: bool, out: Output) -> None:
    _heading(out, f"for {target.image_name}, {target.machine}")
    _field(out, "build-id", target.build_id)
    parts = ", ".join(f"{s.kind} {s.size:,} {_PROTECTION[s.kind]}" for s in target.segments)
    _field(out, "memory", f"{memory(target) // 1024:,} KiB and the ledger ({parts})")
    _field(out, "revert", "memory is kept, its addresses may be stored" if target.escapes else "memory is given back")
    _field(out, "stack check", target.policy, "warn" if target.policy == "entry" else None)
    if target.policy_reason:
        _field(out, "", f"reason: {target.policy_reason}")
    if target.build_id.startswith("pe-"):
        _field(out, "stops", stopping(target))
    counts = Counter(relocation.kind for relocation in target.relocations)
    _field(out, "relocations", ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items())) or "none")
    imports = [f"{i.name}{f'@{i.version}' if i.version else ''} ({i.library or 'any module'})" for i in target.imports]
    for number, text in enumerate(imports):
        _field(out, "" if number else "imports", text)
    if not imports:
        _field(out, "imports", "none")
    _field(out, "unwinding", _unwinding(target))
    _field(out, "hooks", ", ".join(f"{name} at {offset:#x}" for name, offset in target.hooks) or "none")
    _field(out, "symbols", f"{len(target.symbols):,} names{', and a file for debuggers' if symbols else ''}")
    for override in target.overrides:
        _show_override(override, out)
    if not target.overrides:
        _field(out, "overridden", "nothing that the forge refused")
    out.line()
    rows: list[Sequence[Text]] = [_function_row(function) for function in target.functions]
    if rows:
        out.table(["FUNCTION", "ADDRESS", "ENTRY", "BEFORE", "AFTER", "CHANGE"], rows, indent=2)
    else:
        out.line("  replaces no function; its hooks do the work")


def _function_row(function: Function) -> list[Text]:
    before = sum(part.size for part in function.ranges)
    parts = f" in {len(function.ranges)}" if len(function.ranges) > 1 else ""
    return [
        function.name,
        f"{function.entry.vaddr:#x}",
        function.entry.kind,
        f"{before:,} B{parts}",
        f"{function.new_size:,} B",
        f"{function.new_size - before:+,}",
    ]


def stopping(target: Target) -> str:
    """Whether threads of a Windows process are stopped for this target, and why."""
    others = sum(function.entry.kind != "hotpatch" for function in target.functions)
    if others:
        return f"yes: {others:,} of {len(target.functions):,} entries are overwritten where they are"
    if target.policy == "strict":
        return "yes: all entries are hot-patchable, but the policy strict wants a look at the stacks"
    return "no: all entries are hot-patchable, each is switched by one write of two bytes"


def _unwinding(target: Target) -> str:
    if target.unwind is None:
        return "none"
    return (
        f"{target.unwind.size:,} bytes of tables, {'exceptions may pass' if target.unwind.throws else 'no exceptions'}"
    )


def _show_override(override: Override, out: Output) -> None:
    _field(out, "OVERRIDDEN", f"{override.code} {override.symbol or '-'} in {override.file or '-'}", "warn")
    _field(out, "", f"finding: {override.finding}")
    _field(out, "", f"reason: {override.reason}")


def _heading(out: Output, text: str) -> None:
    for piece in textwrap.wrap(clean(text), out.width):
        out.line(Styled(piece, "bold"))


def _field(out: Output, label: str, text: str, style: str | None = None) -> None:
    """One label and its text, which wraps at the right margin; its own line ends are kept."""
    label = f"  {label:<{_LABEL}}"
    for line in text.expandtabs().splitlines() or [""]:
        # Cleaned before it is measured: an escaped character is wider than the one in the file.
        for piece in textwrap.wrap(clean(line), max(out.width - len(label), 20), subsequent_indent="  ") or [""]:
            out.line(label, _styled(piece, style))
            label = " " * len(label)


def _styled(text: str, style: str | None) -> Text:
    match style:
        case "good" | "bad" | "warn" | "dim" | "bold":
            return Styled(text, style)
        case _:
            return text
