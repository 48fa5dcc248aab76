"""One hotpatch for several images: each is forged by itself, and together they become the targets of one manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from midflight.errors import Refused
from midflight.forge.capture.wholebuild import ImagePair, Images
from midflight.forge.forge import ForgeRequest, ForgeResult, Progress, RefusedWithFindings, forge_pair
from midflight.forge.model import BuildPair
from midflight.forge.refusals import REFUSALS, finding
from midflight.forge.review.reviewing import combined

Key = tuple[str, str]
"""Code and symbol of an override."""

_UNMATCHED = "MF13"
"""How the codes of matching begin: another way in which the image was built may fit where this one does not."""


def forge_images(request: ForgeRequest, images: Images, progress: Progress = lambda line: None) -> ForgeResult:
    """Make the contents of a hotpatch for all images that a fix changes.

    Images whose code stays as it is (line numbers apart) are left out.

    Raises:
        RefusedWithFindings: the change cannot be hotpatched safely in one of the images; all findings of all of them.
        Refused: no image changes (MF160).
        ForgeError: an image cannot be read.
    """
    made: list[ForgeResult] = []
    refused: list[RefusedWithFindings] = []
    spare: list[frozenset[Key]] = []
    for image in images.changed:
        result, unneeded = _forge_image(request, image, progress)
        spare.append(unneeded)
        if isinstance(result, ForgeResult):
            made.append(result)
        elif not all(item.code == "MF160" for item in result.findings):
            refused.append(result)
    findings = [item for one in refused for item in one.findings]
    for code, symbol in sorted(frozenset.intersection(*spare) if spare else ()):
        findings.append(finding("MF162", "", symbol, what=f"{code} for {symbol}"))
    if findings:
        results: list[RefusedWithFindings | ForgeResult] = [*refused, *made]
        shown = [item for one in results for item in one.evidence]
        raise RefusedWithFindings(tuple(dict.fromkeys(findings)), _merged([one.report for one in results]), shown)
    if not made:
        raise nothing_to_patch(images)
    first = made[0].manifest
    compilers = dict.fromkeys(word for one in made for word in one.manifest.compiler.split("; ") if word)
    targets = {target.build_id: target for one in made for target in one.manifest.targets}
    manifest = replace(first, compiler="; ".join(compilers), targets=tuple(targets.values()))
    payloads = {name: content for one in made for name, content in one.payloads.items()}
    if manifest.review is not None:
        digests = [one.manifest.review.digest for one in made if one.manifest.review is not None]
        manifest = replace(manifest, review=replace(manifest.review, digest=combined(digests)))
    evidence = tuple(item for one in made for item in one.evidence)
    return ForgeResult(manifest, payloads, _merged([one.report for one in made]), evidence)


def nothing_to_patch(images: Images) -> Refused:
    """The refusal when no file that runs changes."""
    files = [*(pair.running for pair in images.changed), *images.same]
    names = ", ".join(dict.fromkeys(Path(item.name).name for item in files))
    more = f"; it changes only {', '.join(images.others[:4])}" if images.others else ""
    return Refused(
        f"refused: MF160 nothing to patch: the fix changes no code that is compiled into {names}{more}. "
        f"{REFUSALS['MF160'].remedy}"
    )


def _forge_image(
    request: ForgeRequest, image: ImagePair, progress: Progress
) -> tuple[ForgeResult | RefusedWithFindings, frozenset[Key]]:
    """Forge one image from the first of its builds that matches it; and which overrides meet no finding in it."""
    own = replace(request, image=image.running.name, running=image.running.file)
    results: list[tuple[RefusedWithFindings, frozenset[Key]]] = []
    for pair in image.candidates:
        result, spare = _forge_pair(own, pair, progress)
        if isinstance(result, ForgeResult) or not any(f.code.startswith(_UNMATCHED) for f in result.findings):
            return result, spare
        results.append((result, spare))
    return results[0]


def _forge_pair(
    request: ForgeRequest, pair: BuildPair, progress: Progress
) -> tuple[ForgeResult | RefusedWithFindings, frozenset[Key]]:
    """Forge without those overrides that are for another image."""
    try:
        return forge_pair(request, pair, progress), frozenset()
    except RefusedWithFindings as refused:
        met = {(item.code, item.symbol) for item in refused.findings}
        unmet = {item.symbol for item in refused.findings if item.code == "MF162"}
        spare = frozenset(key for key in request.overrides if key[1] in unmet and key not in met)
        if not spare:
            return refused, spare
    kept = {key: reason for key, reason in request.overrides.items() if key not in spare}
    try:
        return forge_pair(replace(request, overrides=kept), pair, progress), spare
    except RefusedWithFindings as refused:
        return refused, spare


def _merged(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report of the first image, which is all of it where there is one, and those of all."""
    return {**reports[0], "images": [dict(report) for report in reports]}
