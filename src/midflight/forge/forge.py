"""From a fix to the contents of a hotpatch: capture, difference, match, refuse or link.

All findings are collected before anything is refused, so that one run shows everything there is to decide.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import midflight
from midflight.errors import ForgeError, InputError, Refused
from midflight.forge.capture.capture import build_pair
from midflight.forge.capture.source import read_fix
from midflight.forge.difference.diff import difference
from midflight.forge.difference.moves import moved
from midflight.forge.difference.overruled import folded, has_local_symbols, overruled
from midflight.forge.linking.hooks import compile_hooks, example, hook_functions, strangers
from midflight.forge.linking.link import Linked, link
from midflight.forge.linking.select import Selection, select
from midflight.forge.matching.debugfiles import open_debug_file, open_pdb
from midflight.forge.matching.inputs import Inputs
from midflight.forge.matching.match import Fixed, Key, match
from midflight.forge.matching.matchreport import match_report
from midflight.forge.matching.runimage import RunImage, SymbolTable
from midflight.forge.model import BuildPair, Finding, Match, ObjectCode, ObjectDiff
from midflight.forge.objects import read_object
from midflight.forge.refusals import REFUSALS, finding
from midflight.forge.review.reviewing import Evidence, review_image
from midflight.forge.review.touched import touched
from midflight.image.binary import ImageFile, open_image
from midflight.image.pe import PeFile
from midflight.patch.manifest import (
    PE_SCHEMA,
    REVIEWED_SCHEMA,
    SCHEMA_VERSION,
    HookName,
    Manifest,
    Override,
    Policy,
    Review,
    Target,
)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ForgeRequest:
    """What the author asks for; see :func:`midflight.forge.capture.capture.build_pair` for the first five."""

    source: Path
    fix: Path
    make: str
    image: str
    work: Path
    """Folder for work and cache."""
    running: Path | None = None
    """The binary that runs; None: a plain build of the unfixed tree."""
    name: str = ""
    """Series; empty: the name of the image."""
    sequence: int = 1
    description: str = ""
    cves: tuple[str, ...] = ()
    policy: Policy = "strict"
    policy_reason: str | None = None
    overrides: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(code, symbol) to the written reason."""
    reviewer: str | None = None
    """Who signs off what no tool can prove: "Name <mail>"."""
    hooks: Path | None = None
    """A C file with hooks."""
    jobs: int | None = None
    symbols: Path | None = None
    """The PDB of the binary that runs; None: the one beside it, if it needs one."""


@dataclass(frozen=True, slots=True)
class ForgeResult:
    """What goes into the hotpatch file: payloads by their member name; ``report`` is for ``--json``."""

    manifest: Manifest
    payloads: Mapping[str, bytes]
    report: Mapping[str, Any]
    evidence: tuple[Evidence, ...] = ()
    """What a page about it shows, for each image."""


class RefusedWithFindings(Refused):
    """The forge refuses; every finding that was not overridden, and the whole report."""

    def __init__(
        self, findings: Sequence[Finding], report: Mapping[str, Any], evidence: Sequence[Evidence] = ()
    ) -> None:
        first = findings[0]
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        super().__init__(f"refused: {first.code} {first.file}: {first.symbol}: {first.reason}{more}. {first.remedy}")
        self.findings = tuple(findings)
        self.report = report
        self.evidence = tuple(evidence)


def forge(request: ForgeRequest, progress: Progress = lambda line: None) -> ForgeResult:
    """Make the contents of a hotpatch.

    Raises:
        RefusedWithFindings: the change cannot be hotpatched safely.
        InputError, ForgeError: the fix does not apply, a build failed, an image cannot be read.
    """
    _check(request)
    pair = build_pair(
        request.source,
        request.fix,
        request.make,
        request.image,
        request.work,
        running=request.running,
        progress=progress,
        jobs=request.jobs,
    )
    return forge_pair(request, pair, progress)


def _check(request: ForgeRequest) -> None:
    if request.policy == "entry" and not (request.policy_reason or "").strip():
        raise InputError("the entry policy needs a reviewer's reason; say why old and new code may run side by side")
    for (code, symbol), reason in request.overrides.items():
        if not reason.strip():
            raise InputError(f"the override of {code} for {symbol} needs a written reason")
        if code in REFUSALS and REFUSALS[code].kind == "sign-off" and request.reviewer is None:
            raise InputError(f"{code} for {symbol} is signed off by a person; say who with --reviewer 'Name <mail>'")
    if request.running is not None and not request.running.is_file():
        raise InputError(f"the running binary {request.running} does not exist")


def forge_pair(request: ForgeRequest, pair: BuildPair, progress: Progress = lambda line: None) -> ForgeResult:
    """As :func:`forge`, for builds that were captured already."""
    running = request.running or pair.plain_image
    if running is None:
        raise ForgeError("there is no running binary: give one, or let the plain build be made")
    sources = _Sources(pair)
    fix = read_fix(request.source.resolve(), request.fix)
    progress(f"compare: {len(pair.changed)} objects")
    diffs = [diff for path in pair.changed if (diff := _difference(pair, path)) is not None]
    with open_image(running) as run, open_image(pair.post.image) as post:
        debug = _symbols(run, running, request.symbols)
        work = _Work(request, pair, diffs, run, post, debug)
        progress(f"match: against {running.name}")
        linked = work.link(progress)
        progress("review: what no tool can prove")
        assert work.selection is not None
        changes = touched(request.source.resolve(), fix.changes, pair.tree)
        evidence = Evidence(diffs, work.selection.replaced, changes, sources.name, request.source.resolve())
        with open_image(pair.pre.image) as pre:
            work.findings += review_image(evidence, pre, run, linked.imports, sources.path)
        findings = sorted({sources.named(item) for item in work.findings}, key=_order)
        overrides, refused = _override(findings, request.overrides)
        findings += [item for item in refused if item not in findings]
        report = _report(request, work, linked, findings, overrides, sources)
        digest = _reviewed(fix.digest(), run, linked, findings)
        report["review"] = {"reviewer": request.reviewer, "digest": digest}
        if refused:
            raise RefusedWithFindings(refused, report, [evidence])
        target = _target(request, run, linked, overrides)
    manifest = Manifest(
        schema=_schema(target, request.reviewer),
        name=request.name or Path(request.image).name,
        sequence=request.sequence,
        description=request.description,
        cves=request.cves,
        created=_created(request.fix),
        builder=f"midflight {midflight.__version__}",
        compiler="; ".join(dict.fromkeys(diff.post.compiler or "not named in the object" for diff in diffs)),
        fix_sha256=fix.digest(),
        targets=(target,),
        review=None if request.reviewer is None else Review(request.reviewer, digest),
    )
    return ForgeResult(manifest, {target.payload: linked.payload}, report, (evidence,))


def _symbols(run: ImageFile, path: Path, named: Path | None) -> SymbolTable | None:
    """The external symbols of the running image. Raises ImageError when those that were named are not its own."""
    if isinstance(run, PeFile):
        return open_pdb(run, path, named)
    if named is not None:
        raise InputError(f"{named}: a PDB belongs to a Windows program; of others debug files are found by themselves")
    return open_debug_file(run.build_id)


def _difference(pair: BuildPair, path: Path) -> ObjectDiff | None:
    """The differences of one object; None when the fix takes it out of the image, so that nothing of it is new."""
    before, after = pair.pre.objects.get(path), pair.post.objects.get(path)
    if after is None or path not in pair.post.inputs:
        return None
    pre = read_object(before.saved, path) if before is not None and path in pair.pre.inputs else None
    return difference(pre, read_object(after.saved, path))


@dataclass(frozen=True, slots=True)
class _Sources:
    """Names source files, relative to the tree, instead of objects in our work folder."""

    pair: BuildPair

    def path(self, path: Path) -> Path:
        """The source file of an object."""
        made = self.pair.post.objects.get(path) or self.pair.pre.objects.get(path)
        return made.source if made is not None else path

    def name(self, path: Path) -> str:
        """The same, relative to the tree; anything else as it is."""
        source = self.path(path)
        return str(source.relative_to(self.pair.tree)) if source.is_relative_to(self.pair.tree) else str(source)

    def named(self, item: Finding) -> Finding:
        return replace(item, file=self.name(Path(item.file)), reason=item.reason.replace(f"{self.pair.tree}/", ""))


@dataclass(slots=True)
class _Work:
    """Selection, match and link of one image, and all findings on the way."""

    request: ForgeRequest
    pair: BuildPair
    diffs: Sequence[ObjectDiff]
    run: ImageFile
    post: ImageFile
    debug: SymbolTable | None = None
    """The external debug file of the running image."""
    findings: list[Finding] = field(default_factory=list)
    selection: Selection | None = None
    matched: Match | None = None

    def link(self, progress: Progress) -> Linked:
        for diff in self.diffs:
            self.findings += diff.findings
        hooks = self._hooks()
        names = hook_functions(hooks) if hooks is not None else {}
        if names and self.run.format == "pe":
            self.findings.append(finding("MF184", self.request.image, min(names.values())))
        self.findings += moved(self.diffs, RunImage(self.run))
        self._select(hooks, list(names.values()))
        assert self.selection is not None and self.matched is not None
        self.findings += self.matched.findings
        self._look_at_pre()
        progress(f"link: {len(self.selection.replaced)} functions")
        places: dict[HookName, Key] = {}
        if hooks is not None:
            places = {name: (hooks.path, key) for name, key in names.items()}
        linked = link(self.selection, self.matched, self.run, self.post, places)
        unproven = {(item.file, item.symbol) for item in self.matched.findings}
        # What was not matched cannot be referred to either: once is enough.
        self.findings += [f for f in linked.findings if f.code != "MF141" or (f.file, f.symbol) not in unproven]
        if not self.selection.replaced and not places and not self.findings:
            self.findings.append(finding("MF160", self.request.image, self.request.image))
        if self.run.format == "pe" and not self.run.is_pie:
            self.findings.append(finding("MF181", self.request.image, self.request.image))
        if self.run.build_id is None:
            self.findings.append(finding("MF161", self.request.image, self.request.image))
        return linked

    def _look_at_pre(self) -> None:
        """What symbols tell that the running image may not have."""
        assert self.selection is not None and self.matched is not None
        objects = {diff.pre.path: diff.pre for diff in self.diffs if diff.pre is not None}
        known = frozenset(item.symbol for item in self.matched.findings if item.code == "MF134")
        replaced = list(self.selection.replaced.values())
        with open_image(self.pair.pre.image) as pre:
            if pre.format == "pe" and not any(symbol.type == "func" for symbol in pre.symbols()):
                self.findings.append(finding("MF183", self.request.image, self.request.image))
            self.findings += overruled(self.diffs, self.pair.pre, pre)
            told_by = self.run if has_local_symbols(self.run) else pre
            self.findings += folded(replaced, objects, told_by, known)

    def _hooks(self) -> ObjectCode | None:
        if self.request.hooks is None:
            return None
        like = example(self.pair.post, self.pair.changed)
        output = self.pair.post.image.parent / "hooks.o"
        code = compile_hooks(self.request.hooks, like, output)
        wrong = strangers(code)
        for name in wrong:
            self.findings.append(finding("MF144", code.path, name, what="no hook has this name, or it is static"))
        if not wrong and not hook_functions(code):
            self.findings.append(finding("MF144", code.path, code.path.name, what="the file defines no hook"))
        return code

    def _fixed(self) -> Fixed:
        """The fixed build, for the case that it is what runs."""
        changed = {(diff.post.path, pre): (diff.post.path, post) for diff in self.diffs for pre, post in diff.changed}
        return Fixed(Inputs.of_build(self.pair.post, (diff.post for diff in self.diffs)), changed)

    def _select(self, hooks: ObjectCode | None, names: Sequence[str]) -> None:
        """Choose and match, again when the match finds that a function was inlined everywhere."""
        image = RunImage(self.run)
        # All objects of the unfixed image; those that did not change may tell where things are, too.
        before = Inputs.of_build(self.pair.pre, (diff.pre for diff in self.diffs if diff.pre is not None))
        fixed = self._fixed()
        absent: frozenset[Key] = frozenset()
        while True:
            self.selection = select(
                self.diffs, lambda name: image.global_symbol(name) is not None, hooks, names, absent
            )
            with open_image(self.pair.pre.image) as linked:
                self.matched = match(self.run, before, self.selection.wanted, linked, fixed=fixed, debug=self.debug)
            if self.matched.absent <= absent:
                return
            absent |= self.matched.absent


def _order(item: Finding) -> tuple[str, str, str, str]:
    return item.code, item.file, item.symbol, item.reason


def _override(
    findings: Sequence[Finding], reasons: Mapping[tuple[str, str], str]
) -> tuple[tuple[Override, ...], list[Finding]]:
    """Split the findings that block into overridden and standing ones; an override of nothing is a finding too."""
    overridden, refused = [], []
    blocking = [item for item in findings if item.blocks]
    for item in blocking:
        reason = reasons.get((item.code, item.symbol))
        if reason is None or not item.overridable:
            refused.append(item)
        else:
            overridden.append(Override(item.code, item.file, item.symbol, item.reason, reason))
    met = {(item.code, item.symbol) for item in blocking}
    for code, symbol in sorted(reasons):
        if (code, symbol) not in met:
            refused.append(finding("MF162", "", symbol, what=f"{code} for {symbol}"))
    return tuple(overridden), refused


def _reviewed(fix: str, run: ImageFile, linked: Linked, findings: Sequence[Finding]) -> str:
    """The digest of what a reviewer signs off: the fix, the baseline, the payload, and all that was found."""
    what = {
        "fix": fix,
        "build_id": run.build_id,
        "payload": hashlib.sha256(linked.payload).hexdigest(),
        "findings": [[f.code, f.kind, f.file, f.symbol, f.reason] for f in findings],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _target(request: ForgeRequest, run: ImageFile, linked: Linked, overrides: tuple[Override, ...]) -> Target:
    assert run.build_id is not None
    return Target(
        image_name=run.soname or Path(request.image).name,
        build_id=run.build_id,
        machine="x86_64",
        payload=f"payload/{run.build_id}.bin",
        payload_sha256=hashlib.sha256(linked.payload).hexdigest(),
        payload_size=len(linked.payload),
        segments=linked.segments,
        functions=linked.functions,
        relocations=linked.relocations,
        imports=linked.imports,
        symbols=linked.symbols,
        unwind=linked.unwind,
        policy=request.policy,
        policy_reason=request.policy_reason,
        hooks=linked.hooks,
        overrides=overrides,
        escapes=linked.escapes,
    )


def _schema(target: Target, reviewer: str | None) -> int:
    if target.build_id.startswith("pe-"):
        return PE_SCHEMA
    return SCHEMA_VERSION if reviewer is None else REVIEWED_SCHEMA


def _created(fix: Path) -> str:
    """SOURCE_DATE_EPOCH, or the newest time in the fix, in RFC 3339."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None and epoch.isdigit():
        seconds = int(epoch)
    else:
        files = [fix, *fix.rglob("*")] if fix.is_dir() else [fix]
        seconds = max(int(file.lstat().st_mtime) for file in files if not file.is_dir() or file is fix)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _report(
    request: ForgeRequest,
    work: _Work,
    linked: Linked,
    findings: Sequence[Finding],
    overrides: Sequence[Override],
    sources: _Sources,
) -> dict[str, Any]:
    """Everything that was found and decided, as plain data."""
    assert work.selection is not None and work.matched is not None
    overridden = {(item.code, item.symbol): item.reason for item in overrides}
    functions = []
    for post, pre in work.selection.replaced.items():
        place = work.matched.functions.get(pre)
        new = work.selection.atom(post)
        code = work.selection.diffs[pre[0]].pre
        old_size = code.atoms[pre[1]].size if code is not None else 0
        functions.append(
            {
                "name": new.name,
                "file": sources.name(post[0]),
                "vaddr": None if place is None else place.vaddr,
                "size_before": old_size if place is None else place.size,
                "size_after": new.size,
                "matched_by": None if place is None else place.how,
            }
        )
    return {
        "image": request.image,
        "build_id": work.run.build_id,
        "objects": {
            "linked": len(work.pair.post.inputs),
            "changed": len(work.pair.changed),
            "files": sorted(sources.name(path) for path in work.pair.changed),
        },
        "functions": functions,
        "line_numbers_only": sorted(key for diff in work.diffs for key in diff.line_only),
        "new": sorted(work.selection.atom(k).name for k in work.selection.included if _is_new(work.selection, k)),
        "match": match_report(work.matched, sources.name)
        | {"debug_file": None if work.debug is None else work.debug.name},
        "payload": {"size": len(linked.payload), "relocations": len(linked.relocations), "escapes": linked.escapes},
        "imports": [item.name for item in linked.imports],
        "findings": [
            {
                "code": item.code,
                "kind": item.kind,
                "file": item.file,
                "symbol": item.symbol,
                "reason": item.reason,
                "remedy": item.remedy,
                "overridable": item.overridable,
                "overridden": overridden.get((item.code, item.symbol)),
            }
            for item in findings
        ],
    }


def _is_new(selection: Selection, key: Key) -> bool:
    atom = selection.atom(key)
    return bool(atom.name) and key not in selection.changed and not atom.name.startswith("DW.ref.")
