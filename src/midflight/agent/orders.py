"""What is ordered for this machine, and what that means for one process. Pure: no effects here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from midflight.patch.hotpatch import Hotpatch

Key = tuple[str, int]
"""A hotpatch by name and sequence, as people and bars name it."""


def key_of(hotpatch: Hotpatch) -> Key:
    """Name and sequence."""
    return hotpatch.manifest.name, hotpatch.manifest.sequence


def show(key: Key) -> str:
    """NAME SEQUENCE, for people."""
    return f"{key[0]} {key[1]}"


@dataclass(frozen=True, slots=True)
class Orders:
    """Verified hotpatches that are to be in force, and what else was found and cannot be used, with the reason."""

    hotpatches: tuple[Hotpatch, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
    """(what, why)"""
    out: frozenset[Key] = frozenset()
    """To be taken out of every process that has it."""


class OrderSource(Protocol):
    """Where orders come from: a folder, a server. Everything that it returns is verified."""

    def look(self) -> Orders | None:
        """What is ordered now, when that changed since the last call; None: as before. Never raises for what can go
        wrong: that is a problem of the orders. What was ordered before stays ordered while it cannot be told."""

    def barred(self) -> None:
        """Something that was ordered hurt, was taken out and barred: whoever ordered it is to hear that soon."""

    def describe(self) -> str:
        """Where they come from, for people."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is in force for each image: of every name the latest sequence that has this image and is not barred."""

    by_image: Mapping[str, tuple[Hotpatch, ...]] = field(default_factory=dict)
    keys: frozenset[Key] = frozenset()
    problems: tuple[tuple[str, str], ...] = ()

    def for_images(self, images: Iterable[str]) -> list[Hotpatch]:
        """What a process with these images (by build-id) is to run, in the order in which it is to be applied."""
        found = {hotpatch.digest: hotpatch for image in images for hotpatch in self.by_image.get(image, ())}
        return sorted(found.values(), key=key_of)


def wanted(orders: Orders, barred: Collection[Key]) -> Wanted:
    """What is in force. Of two files with the same name and sequence only one is used: they should be one."""
    usable: dict[Key, Hotpatch] = {}
    problems = []
    for hotpatch in sorted(orders.hotpatches, key=lambda one: one.digest):
        key = key_of(hotpatch)
        if key in usable and usable[key].digest != hotpatch.digest:
            problems.append((show(key), f"there are two different files; sha256 {usable[key].digest[:16]}… is used"))
        elif key not in barred:
            usable[key] = hotpatch
    latest: dict[tuple[str, str], Hotpatch] = {}
    for key in sorted(usable):
        for target in usable[key].manifest.targets:
            latest[key[0], target.build_id] = usable[key]
    by_image: dict[str, list[Hotpatch]] = {}
    for (_, image), hotpatch in sorted(latest.items(), key=lambda item: item[0]):
        by_image.setdefault(image, []).append(hotpatch)
    keys = frozenset(key_of(hotpatch) for hotpatch in latest.values())
    return Wanted({image: tuple(found) for image, found in by_image.items()}, keys, tuple(problems))


def withdrawn(before: Collection[Key], now: Collection[Key]) -> list[Key]:
    """What was ordered and is not any more. What a later sequence of the same name replaces is none of these: that
    goes out of the processes when the later one comes in."""
    latest: dict[str, int] = {}
    for name, sequence in now:
        latest[name] = max(sequence, latest.get(name, 0))
    return sorted(key for key in before if key not in now and latest.get(key[0], 0) < key[1])
