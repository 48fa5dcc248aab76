"""The review of one image: all that a person must or should see, over all objects and the image as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from midflight.forge.families import base_name
from midflight.forge.matching.match import Key
from midflight.forge.matching.runimage import RunImage
from midflight.forge.model import Finding, ObjectDiff
from midflight.forge.refusals import finding
from midflight.forge.review.callgraph import call_graph
from midflight.forge.review.moments import moments
from midflight.forge.review.review import review
from midflight.forge.review.touched import Touched
from midflight.image.binary import ImageFile
from midflight.patch.manifest import Import


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a report shows of one image."""

    diffs: Sequence[ObjectDiff]
    replaced: Mapping[Key, Key]
    """Functions that get a new version: (object, post key) to (object, pre key)."""
    touched: Touched
    name: Callable[[Path], str]
    """The source file of an object, relative to the tree."""
    source: Path
    """The unfixed tree."""


def combined(digests: Sequence[str]) -> str:
    """One digest for what is signed off in several images; that of the image where there is one."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def review_image(
    evidence: Evidence, pre: ImageFile, run: ImageFile, imports: Sequence[Import], source_of: Callable[[Path], Path]
) -> Iterator[Finding]:
    """Sign-offs, warnings and notes.

    Args:
        evidence: what the fix changes.
        pre: the unfixed image as it was built here, with symbols.
        run: the image that runs.
        imports: what the new code needs of other modules.
        source_of: the source file of an object.
    """
    for diff in evidence.diffs:
        yield from review(diff, evidence.touched)
    by_path = {diff.post.path: diff for diff in evidence.diffs}
    functions = {}
    for (path, key), (_, old) in evidence.replaced.items():
        code = by_path[path].pre
        if code is not None:
            atom = code.atoms[old]
            functions[path, base_name(by_path[path].post.atoms[key].name)] = (atom.name, source_of(path))
    if functions:
        yield from moments(call_graph(RunImage(pre)), functions)
    yield from new_imports(run, imports, run.soname or Path(run.name).name)


def new_imports(run: ImageFile, imports: Sequence[Import], image: str) -> Iterator[Finding]:
    """What the new code looks up that the running image does not import so far."""
    known = {s.name for s in run.dynamic_symbols() if s.section is None} if run.is_dynamic else set()
    for item in imports:
        if item.name not in known:
            symbol = f"{item.name}@{item.version}" if item.version else item.name
            code = "MF176" if item.library in run.needed else "MF177"
            library = item.library or "some other module"
            yield finding(code, image, item.name, what=symbol, library=library)
