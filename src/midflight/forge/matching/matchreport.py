"""The match report: how much of the objects was matched, and by what each address is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from midflight.forge.model import Match, Place


def match_report(matched: Match, name: Callable[[Path], str]) -> dict[str, Any]:
    """As plain data; ``name`` gives an object the name that people know it by."""
    return {
        "functions": matched.matched_functions,
        "wanted": matched.total_functions,
        "percent": percent(matched),
        "objects": {
            name(path): {"functions": item.matched, "of": item.functions, "unmatched": list(item.unmatched)}
            for path, item in matched.objects.items()
        },
        "addresses": [
            *(_place(name(path), key, place) for (path, key), place in matched.functions.items()),
            *(_place(name(path), key, place) for (path, key), place in matched.data.items()),
            *(_place("", key, place) for key, place in matched.symbols.items()),
        ],
    }


def _place(file: str, name: str, place: Place) -> Mapping[str, Any]:
    found = {"file": file, "name": name, "vaddr": place.vaddr, "witnesses": place.witnesses, "how": place.how}
    return found if file else {k: v for k, v in found.items() if k != "file"}


def percent(matched: Match) -> float:
    """Functions that were matched, in percent of those of the objects concerned, rounded down to a tenth."""
    return int(1000 * matched.matched_functions / matched.total_functions) / 10 if matched.total_functions else 100.0


def summary(report: Mapping[str, Any]) -> str:
    """One line for people."""
    addresses = report["addresses"]
    line = f"{report['functions']} of {report['wanted']} functions of the objects concerned ({report['percent']} %)"
    if not addresses:
        return line
    alone = sum(1 for item in addresses if item["witnesses"] < 2)
    unique = f", {alone} by a proof that nothing else can be meant" if alone else ""
    return f"{line}; {len(addresses)} addresses: {len(addresses) - alone} by two or more witnesses{unique}"
