"""Copies a repository, verified, to a place without a network: a folder that devices take as their source.

Only plain files are written, so that it may be on any disk; ``timestamp.json``, which says what is current, comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets

from midflight.errors import InputError
from midflight.trust.client import METADATA, ContentClient
from midflight.trust.content import Catalog
from midflight.trust.files import replace_file
from midflight.trust.generations import remove_targets
from midflight.trust.pinning import Pin, Timeouts
from midflight.trust.repositoryfolder import hashed_name

STATE = ".midflight-mirror"


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What a run did."""

    catalog: Catalog
    files: int
    """Target files that the mirror has now."""
    fetched: int
    """Of those, how many were not there before."""
    size: int
    """Bytes of all target files."""


def mirror(
    source: str | Path,
    destination: Path,
    root: bytes | None = None,
    proxy: str | None = None,
    timeouts: Timeouts | None = None,
    pins: Iterable[Pin] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> Mirrored:
    """Bring a mirror up to date, or begin one.

    Args:
        root: the root metadata to trust; needed the first time. Give version 1, for devices of every age.
        pins: keys that an https source may have; without any, its certificate must be one that this system trusts.

    Raises:
        ContentError: the source is not believed; the mirror stays as it was, but for files that nothing names yet.
        InputError: no root is given for a new mirror, or the destination cannot be written.
    """
    state = destination / STATE
    try:
        if root is not None:
            ContentClient.bootstrap(state, root)
        elif not (state / "root.json").exists():
            raise InputError(f"{destination} is no mirror yet; give the root metadata to trust with --root")
        client = ContentClient(state, source, proxy, timeouts, pins=pins)
        catalog = client.refresh()
        targets: Metadata[Targets] = Metadata.from_file(str(state / METADATA / "targets.json"))
        fetched = 0
        for number, target in enumerate(targets.signed.targets.values(), 1):
            progress(f"copying: {number} of {len(targets.signed.targets)} files")
            fetched += _have(client, target, destination / "targets" / hashed_name(target))
        _write_metadata(state / METADATA, destination / "metadata")
        remove_targets(destination / "targets", {hashed_name(t) for t in targets.signed.targets.values()})
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}; check the folder and its space") from None
    total = sum(target.length for target in targets.signed.targets.values())
    return Mirrored(catalog, len(targets.signed.targets), fetched, total)


def _have(client: ContentClient, target: TargetFile, final: Path) -> bool:
    """Have the file of a target; returns whether it was fetched."""
    before = final.stat().st_mtime_ns if final.exists() else None
    client.download_target(target, final)
    return before != final.stat().st_mtime_ns


def _write_metadata(verified: Path, final: Path) -> None:
    """Lay out the metadata that a client has verified the way a repository does."""
    final.mkdir(parents=True, exist_ok=True)
    targets: Metadata[Targets] = Metadata.from_file(str(verified / "targets.json"))
    snapshot: Metadata[Snapshot] = Metadata.from_file(str(verified / "snapshot.json"))
    names = {f"{targets.signed.version}.targets.json", f"{snapshot.signed.version}.snapshot.json"}
    replace_file(final / f"{targets.signed.version}.targets.json", (verified / "targets.json").read_bytes())
    replace_file(final / f"{snapshot.signed.version}.snapshot.json", (verified / "snapshot.json").read_bytes())
    for path in sorted((verified / "root_history").glob("*.root.json"), key=lambda p: int(p.name.partition(".")[0])):
        if not (final / path.name).exists():
            replace_file(final / path.name, path.read_bytes())
    replace_file(final / "timestamp.json", (verified / "timestamp.json").read_bytes())
    for pattern in ("*.targets.json", "*.snapshot.json"):
        for path in final.glob(pattern):
            if path.name not in names:
                path.unlink()
