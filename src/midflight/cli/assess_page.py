"""The page for reviewers: one HTML file that needs nothing else, for any screen, light or dark, and for paper.

Everything from outside passes through :func:`html.escape`; the page has no script and loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import Any

from midflight import __version__
from midflight.cli.output import clean
from midflight.forge.matching.matchreport import summary
from midflight.forge.model import ObjectDiff
from midflight.forge.refusals import REFUSALS
from midflight.forge.review.assessment import KINDS, Assessment, grouped
from midflight.forge.review.listing import Line, Listing, Pair, SourceText, lines_of, side_by_side
from midflight.forge.review.reviewing import Evidence

_HEADINGS = {
    "refusal": "What forbids it",
    "sign-off": "What a person must sign off",
    "warning": "Warnings",
    "note": "Notes",
}
_CONTEXT = 3
"""Equal instructions that are shown around those that differ; longer runs are folded."""
_SHORTEST_FOLD = 6
_LONGEST_FOLD = 400
"""Of longer runs only the ends are in the page at all."""


def page(result: Assessment, evidence: Sequence[Evidence], reviewer: str | None = None) -> str:
    """The whole page."""
    title = ", ".join(str(image["image"]) for image in result.images) or "fix"
    body = "\n".join(
        (
            _head(result, title),
            _findings(result),
            *(_image(image, shown) for image, shown in zip(result.images, _padded(evidence, result), strict=True)),
            _first_answer(result),
            _limits(result),
            _sign_off(result, reviewer) if result.images else "",
        )
    )
    style = (files("midflight.cli") / "assess_page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}: {_text(result.summary)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _padded(evidence: Sequence[Evidence], result: Assessment) -> list[Evidence | None]:
    return [*evidence, *[None] * len(result.images)][: len(result.images)]


def _text(value: object) -> str:
    return escape(clean(str(value)), quote=True)


def _code(value: object) -> str:
    return f"<code>{_text(value)}</code>"


# --- the verdict and the findings ----------------------------------------------------------------------------------


def _head(result: Assessment, title: str) -> str:
    numbers = [(len(grouped([f for f in result.findings if f["kind"] == kind])), kind) for kind in KINDS]
    counts = [f"{number} {kind}{'' if number == 1 else 's'}" for number, kind in numbers]
    return (
        f'<header class="{result.verdict}">\n<p class="what">Assessment of a fix for {_text(title)}</p>\n'
        f"<h1>{_text(result.summary[:1].upper() + result.summary[1:])}</h1>\n"
        f'<p class="counts">{_text(" · ".join(counts))}</p>\n</header>'
    )


def _findings(result: Assessment) -> str:
    parts = []
    for kind in KINDS:
        found = grouped([item for item in result.findings if item["kind"] == kind])
        if found:
            cards = "\n".join(_finding(item) for item in found)
            parts.append(f"<section>\n<h2>{_HEADINGS[kind]} ({len(found)})</h2>\n{cards}\n</section>")
    if not parts:
        parts.append("<section>\n<h2>Findings</h2>\n<p>None.</p>\n</section>")
    return "\n".join(parts)


def _finding(item: Mapping[str, Any]) -> str:
    code = item["code"]
    title = REFUSALS[code].title if code in REFUSALS else "Refused"
    place = f"{_text(item['file'])}" if item["file"] else ""
    lines = [
        f'<article class="finding {_text(item["kind"])}{" answered" if item["overridden"] else ""}">',
        f'<h3><span class="badge">{_text(code or "-")}</span> {_text(title)}: {_code(item["symbol"] or "the fix")}'
        f"{f' <small>{place}</small>' if place else ''}</h3>",
        f"<p>{_sentence(item['reason'])}</p>",
    ]
    if item["overridden"]:
        lines.append(f'<p class="answer"><b>Reason given:</b> {_text(item["overridden"])}</p>')
    elif item["remedy"]:
        label = "What would allow it" if item["kind"] in ("refusal", "sign-off") else "What to do"
        lines.append(f'<p class="remedy"><b>{label}:</b> {_text(item["remedy"])}</p>')
    return "\n".join([*lines, "</article>"])


def _sentence(text: str) -> str:
    return _text(text[:1].upper() + text[1:]) + ("" if text.endswith(".") else ".")


def _first_answer(result: Assessment) -> str:
    """While nothing is built, what the text of the fix tells."""
    if result.verdict != "unknown" or result.preview is None:
        return ""
    hints = result.preview["likely"] or ["nothing speaks against it"]
    items = "\n".join(f"<li>{_text(hint)}</li>" for hint in hints)
    return f"<section>\n<h2>From the text of the fix alone</h2>\n<ul>\n{items}\n</ul>\n</section>"


def _limits(result: Assessment) -> str:
    items = "\n".join(f"<li>{_text(limit)}</li>" for limit in result.document()["cannot_know"])
    return f"<section>\n<h2>What this cannot know</h2>\n<ul>\n{items}\n</ul>\n</section>"


# --- one image -----------------------------------------------------------------------------------------------------


def _image(image: Mapping[str, Any], evidence: Evidence | None) -> str:
    match, payload = image["match"], image["payload"]
    facts = [
        ("Baseline", _code(image["image"])),
        ("Build-id", _code(image["build_id"])),
        ("Objects", f"{image['objects']['changed']} of {image['objects']['linked']} changed"),
        ("Sources", ", ".join(_code(name) for name in image["objects"]["files"]) or "none"),
        ("Match", _text(summary(match))),
        ("Payload", f"{payload['size']:,} bytes, {payload['relocations']} relocations"),
        ("New", ", ".join(_code(name) for name in image["new"]) or "nothing"),
        ("Imports", ", ".join(_code(name) for name in image["imports"]) or "none"),
        ("Digest", f"<code>{_text(image['review']['digest'])}</code>"),
    ]
    rows = "\n".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    head = f"<section>\n<h2>{_text(image['image'])}</h2>\n<dl>\n{rows}\n</dl>"
    parts = [head, _functions(image), _addresses(match), "</section>"]
    if evidence is not None:
        parts += _listings(image, evidence)
    return "\n".join(parts)


def _functions(image: Mapping[str, Any]) -> str:
    rows = []
    for item in image["functions"]:
        place = "-" if item["vaddr"] is None else f"{item['vaddr']:#x}"
        cells = [_code(item["name"]), _text(item["file"]), _code(place)]
        numbers = [
            f"{item['size_before']:,}",
            f"{item['size_after']:,}",
            f"{item['size_after'] - item['size_before']:+,}",
        ]
        rows.append(
            "<tr>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "".join(f'<td class="number">{number}</td>' for number in numbers)
            + f"<td>{_text(item['matched_by'] or 'not found')}</td></tr>"
        )
    if not rows:
        return "<p>No function gets a new version.</p>"
    heads = ("Function", "File", "Address", "Bytes", "New", "Change", "Found by")
    right = ("Bytes", "New", "Change")
    head = "".join(f'<th class="number">{name}</th>' if name in right else f"<th>{name}</th>" for name in heads)
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _addresses(match: Mapping[str, Any]) -> str:
    """How each address that the new code uses was found."""
    if not match["addresses"]:
        return ""
    rows = "\n".join(
        f"<tr><td>{_code(item['name'])}</td><td>{_text(item.get('file', ''))}</td><td>{_code(hex(item['vaddr']))}</td>"
        f'<td class="number">{item["witnesses"]}</td><td>{_text(item["how"])}</td></tr>'
        for item in match["addresses"]
    )
    head = '<th>Name</th><th>File</th><th>Address</th><th class="number">Witnesses</th><th>Found by</th>'
    count = len(match["addresses"])
    return (
        f'<details class="more"><summary>How {count} addresses were found</summary>\n<div class="wide"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n</details>"
    )


def _listings(image: Mapping[str, Any], evidence: Evidence) -> Iterator[str]:
    diffs: dict[Any, ObjectDiff] = {diff.post.path: diff for diff in evidence.diffs}
    text = SourceText(evidence.touched, evidence.source)
    for (path, post), (_, pre) in evidence.replaced.items():
        diff = diffs[path]
        if diff.pre is not None:
            name = diff.post.atoms[post].name
            listing = side_by_side(name, lines_of(diff.pre, pre), lines_of(diff.post, post))
            yield _listing(listing, evidence.name(path), text)


# --- one function --------------------------------------------------------------------------------------------------


def _listing(listing: Listing, file: str, source: SourceText) -> str:
    """Before and after side by side; runs of equal instructions are folded."""
    folded = []
    for same, run in groupby(_near(listing.pairs), key=lambda item: item[1]):
        pairs = [pair for pair, _ in run]
        if same and len(pairs) >= _SHORTEST_FOLD:
            folded.append(
                f"<details><summary>{len(pairs)} equal instructions</summary>\n{_rows(_cut(pairs), source)}\n</details>"
            )
        else:
            folded.append(_rows(pairs, source))
    count = listing.changed
    return (
        f'<section class="function">\n<h2>{_code(listing.name)} <small>{_text(file)}</small></h2>\n'
        f"<p>{count} of {len(listing.pairs)} lines differ.</p>\n"
        '<div class="listing">\n<div class="row heads"><b class="before">Before</b><b class="after">After</b></div>\n'
        + "\n".join(folded)
        + "\n</div>\n</section>"
    )


def _near(pairs: Sequence[Pair]) -> list[tuple[Pair, bool]]:
    """Each pair, and whether it is far from all that differ."""
    distance = [len(pairs)] * len(pairs)
    for order in (range(len(pairs)), reversed(range(len(pairs)))):
        last = len(pairs)
        for index in order:
            last = 0 if not pairs[index].same else last + 1
            distance[index] = min(distance[index], last)
    return [(pair, distance[index] > _CONTEXT) for index, pair in enumerate(pairs)]


def _cut(pairs: Sequence[Pair]) -> Sequence[Pair | int]:
    if len(pairs) <= _LONGEST_FOLD:
        return pairs
    half = _LONGEST_FOLD // 2
    return [*pairs[:half], len(pairs) - 2 * half, *pairs[-half:]]


def _rows(pairs: Sequence[Pair | int], source: SourceText) -> str:
    rows = []
    places: list[tuple[str, int]] = [("", 0), ("", 0)]
    for pair in pairs:
        if isinstance(pair, int):
            rows.append(f'<div class="row gap"><i class="before">{pair} more are not in this page</i></div>')
            continue
        sides = (pair.before, pair.after)
        now = [places[i] if line is None else (line.file, line.line) for i, line in enumerate(sides)]
        if now != places:
            rows.append(_source_row(places, now, sides, source))
            places = now
        kind = "same" if pair.same else "differs"
        rows.append(
            f'<div class="row {kind}">{_instruction(pair.before, "before")}{_instruction(pair.after, "after")}</div>'
        )
    return "\n".join(rows)


def _source_row(
    old: Sequence[tuple[str, int]],
    now: Sequence[tuple[str, int]],
    sides: tuple[Line | None, Line | None],
    source: SourceText,
) -> str:
    """The source lines that the next instructions are made of, on those sides where they change."""
    texts = [source.line(side, *now[side]).strip() for side in (0, 1)]
    cells = []
    for side, name in enumerate(("before", "after")):
        if sides[side] is None or not now[side][1] or now[side] == old[side]:
            cells.append(f'<span class="{name}"></span>')
            continue
        place = f"{source.name(now[side][0])}:{now[side][1]}"
        cells.append(f'<span class="{name}"><small>{_text(place)}</small> {_text(texts[side])}</span>')
    both = all(line is not None for line in sides)
    return f'<div class="row source{" same" if both and texts[0] == texts[1] else ""}">{"".join(cells)}</div>'


def _instruction(line: Line | None, side: str) -> str:
    if line is None:
        return f'<code class="{side} none"></code>'
    return f'<code class="{side}"><small>{line.offset:x}</small> {_text(line.text)}</code>'


# --- the place to sign ---------------------------------------------------------------------------------------------


def _sign_off(result: Assessment, reviewer: str | None) -> str:
    needed = grouped([item for item in result.findings if item["kind"] == "sign-off"])
    rows = "\n".join(
        f"<tr><td>{_code(item['code'])} {_code(item['symbol'])}</td>"
        f'<td class="write">{_text(item["overridden"] or "")}</td></tr>'
        for item in needed
    )
    reasons = (
        "<table>\n<thead><tr><th>Finding</th><th>Why it is safe here</th></tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>"
        if needed
        else "<p>No finding needs a reason.</p>"
    )
    words = f"<p>{_code(result.digest)}</p>"
    return (
        '<section class="sign">\n<h2>Sign-off</h2>\n'
        "<p>What is signed off: the fix, the baseline, the payload and all findings above, which this digest stands "
        "for. With <code>--override CODE:SYMBOL=REASON --reviewer 'NAME &lt;MAIL&gt;'</code> it goes into the signed "
        "hotpatch; <code>midflight inspect</code> shows it again.</p>\n"
        f"{words}\n{reasons}\n<dl>\n"
        f'<dt>Reviewer</dt><dd class="write">{_text(reviewer or "")}</dd>\n'
        '<dt>Date</dt><dd class="write"></dd>\n'
        '<dt>Decision</dt><dd><span class="box"></span> may be applied '
        '<span class="box"></span> must not be applied</dd>\n'
        '<dt>Signature</dt><dd class="write tall"></dd>\n</dl>\n'
        f'<p class="made">midflight {_text(__version__)}</p>\n</section>'
    )
