"""How much of shipped Debian binaries run-pre matching finds: every function and variable of every object of an image.

Not among the benchmarks that run by default, since whole packages are fetched and built: ``python -m bench match``. The
addresses of what the image exports are held against its dynamic symbols; one that differs makes it end with 1.
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.measure import WORK, save, table
from midflight.errors import MidflightError
from midflight.forge.forge import ForgeRequest
from midflight.forge.matching.inputs import Inputs
from midflight.forge.matching.match import Wanted, match
from midflight.forge.model import Build, Match
from midflight.forge.packages.debian import Debian
from midflight.forge.packages.forging import PackageRequest, prepare
from midflight.forge.packages.sources import fetch
from midflight.image.elf import ElfFile

PACKAGES = (
    ("libexpat1", "2.5.0-1+deb12u2", "expat/lib/xmltok.c", "libexpat.so.1"),
    ("liblzma5", "5.4.1-1+deb12u1", "src/liblzma/check/check.c", "liblzma.so.5"),
    ("redis-tools", "5:7.0.15-1~deb12u7", "src/adlist.c", "redis-check-rdb"),
    ("nginx", "1.22.1-9+deb12u9", "src/core/ngx_string.c", "nginx"),
)
"""Package, version, a source file, and the start of the image's name. A line is added to the file, so that there is
something to build; what is matched is the build without it."""


def main() -> None:
    """Measure and print."""
    results = [row for package in PACKAGES for row in _package(*package)]
    columns = ("image", "objects", "functions", "matched", "percent", "data", "seconds", "exported", "wrong")
    rows = [[row[name] for name in columns] for row in results]
    table("run-pre matching of shipped binaries", columns, rows)
    for row in results:
        print(f"{row['image']}: findings {row['findings']}; not matched: {', '.join(row['unmatched'][:20]) or 'none'}")
    save("match", results)
    if any(row["wrong"] for row in results):
        raise SystemExit(1)


def _package(name: str, version: str, changed: str, image: str) -> Iterator[dict[str, Any]]:
    work = WORK / "packages"
    work.mkdir(parents=True, exist_ok=True)
    nothing = Path()
    source = Debian(work, lambda line: print(f"  {line}", flush=True))
    try:
        package = source.resolve(name, version)
        shipped = source.shipped(package)
        file = next(item.file for item in shipped if Path(item.name).name.startswith(image))
        tree = fetch(package.name, work, package.version).tree
        fix = _line_added(tree, changed, work / f"{package.name}.patch")
        wanted = PackageRequest(name, version, str(fix), running=str(file))
        ready = prepare(source, wanted, ForgeRequest(nothing, nothing, "", "", work), lambda line: None)
    except MidflightError as error:  # one package that cannot be had must not hide the figures of the others
        print(f"{name} {version}: {error}")
        return
    for pair in ready.images.changed:
        yield _image(pair.running.file, image, pair.candidates[0].pre)


def _line_added(tree: Path, name: str, patch: Path) -> Path:
    """A patch that adds a variable that nobody uses at the end of a source file."""
    text = (tree / name).read_text(errors="surrogateescape").splitlines(keepends=True)
    more = [*text, "int midflight_bench;\n"]
    lines = difflib.unified_diff(text, more, f"a/{name}", f"b/{name}")
    patch.write_text("".join(lines), errors="surrogateescape")
    return patch


def _image(file: Path, name: str, build: Build) -> dict[str, Any]:
    inputs = Inputs.of_build(build)
    wanted = everything(inputs)
    with ElfFile.open(file) as run, ElfFile.open(build.image) as linked:
        begin = time.monotonic()
        found = match(run, inputs, wanted, linked)
        seconds = time.monotonic() - begin
        exported, wrong = contradicted(run, inputs, found)
    unmatched = [item for report in found.objects.values() for item in report.unmatched]
    return {
        "image": name,
        "objects": len(inputs),
        "functions": found.total_functions,
        "matched": found.matched_functions,
        "percent": 100 * found.matched_functions / max(found.total_functions, 1),
        "data": f"{len(found.data)}/{len(wanted.atoms)}",
        "seconds": seconds,
        "exported": exported,
        "wrong": wrong,
        "findings": dict(Counter(item.code for item in found.findings)),
        "unmatched": unmatched,
    }


def everything(inputs: Inputs) -> Wanted:
    """All functions, and all variables that have a name."""
    atoms = [(path, key, atom) for path in inputs for key, atom in inputs[path].atoms.items()]
    named = frozenset((path, key) for path, key, atom in atoms if atom.kind != "function" and atom.name)
    return Wanted(frozenset((path, key) for path, key, atom in atoms if atom.kind == "function"), named)


def contradicted(run: ElfFile, inputs: Inputs, found: Match) -> tuple[int, int]:
    """How many addresses the dynamic symbols of the image name, and how many of these they have elsewhere."""
    truth: dict[str, set[int]] = {}
    for symbol in run.dynamic_symbols():
        if symbol.defined:
            truth.setdefault(symbol.name, set()).add(symbol.value)
    checked = wrong = 0
    places: Mapping[tuple[Path, str], object] = {**found.functions, **found.data}
    for path, key in places:
        atom = inputs[path].atoms[key]
        place = found.functions.get((path, key)) or found.data[path, key]
        for name in (atom.name, *atom.aliases) if atom.binding != "local" else ():
            if name in truth:
                checked += 1
                wrong += place.vaddr not in truth[name]
    return checked, wrong
