"""The part of midflight inspect that shows a PE image: its identity, and what it claims as a hotpatch of Windows.

Reading only: Midflight neither applies nor verifies Microsoft's hotpatches.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from midflight.cli.output import Output, Styled
from midflight.image.binary import MAGIC_PE
from midflight.image.pe import PeFile
from midflight.image.pehotpatch import HotPatchBase, HotPatchInfo


def is_pe(file: str) -> bool:
    """Whether a file begins as a PE image; False when it cannot be read."""
    try:
        with Path(file).open("rb") as stream:
            return stream.read(2) == MAGIC_PE
    except OSError:
        return False


def inspect_image(file: str, out: Output) -> int:
    """Show a PE image; returns the exit status.

    Raises:
        ImageError: it is malformed, or for another machine.
    """
    with PeFile.open(file) as image:
        info = image.hotpatch_info
        out.result(document(file, image, info))
        if not out.json:
            _show(file, image, info, out)
    return 0


def document(file: str, image: PeFile, info: HotPatchInfo | None) -> dict[str, object]:
    """What --json prints."""
    return {
        "file": file,
        "image": {
            "kind": image.kind,
            "name": image.soname,
            "build_id": image.build_id,
            "checksum": image.checksum,
            "timestamp": image.timestamp,
            "relocatable": image.is_pie,
        },
        "windows_hotpatch": None if info is None else _hotpatch(info),
    }


def _hotpatch(info: HotPatchInfo) -> dict[str, object]:
    return {
        "version": info.version,
        "sequence": info.sequence,
        "extra_patch_size": info.extra_patch_size,
        "patches": len(info.bases),
        "bases": [
            {
                "build_id": base.identity,
                "checksum": base.checksum,
                "timestamp": base.timestamp,
                "sequence": base.sequence,
                "flags": list(base.meanings),
                "sha256": base.sha256,
            }
            for base in info.bases
        ],
    }


def _show(file: str, image: PeFile, info: HotPatchInfo | None, out: Output) -> None:
    out.line(Styled(Path(file).name, "bold"))
    _field(out, "kind", f"{'DLL' if image.kind == 'shared' else 'program'}, PE32+ for x86-64")
    _field(out, "build-id", image.build_id or "none: both CheckSum and TimeDateStamp are 0")
    _field(out, "CheckSum", f"{image.checksum:#010x}")
    _field(out, "TimeDateStamp", _stamp(image.timestamp))
    _field(out, "relocatable", "yes" if image.is_pie else "no: it has no base relocations")
    if info is None:
        _field(out, "hotpatch", "no: it carries no hot patch information of Windows")
        return
    _field(out, "hotpatch", f"of Windows: IMAGE_HOT_PATCH_INFO version {info.version}, sequence {info.sequence}")
    _field(out, "patches", f"{len(info.bases)} base images")
    for base in info.bases:
        out.line()
        _show_base(base, out)
    out.line()
    out.line("This is what the file says of itself; Midflight neither verifies nor applies hotpatches of Windows.")


def _show_base(base: HotPatchBase, out: Output) -> None:
    _field(out, "for", base.identity)
    _field(out, "CheckSum", f"{base.checksum:#010x}")
    _field(out, "TimeDateStamp", _stamp(base.timestamp))
    _field(out, "sequence", str(base.sequence))
    _field(out, "flags", ", ".join(base.meanings) or "none")
    if base.sha256 is not None:
        _field(out, "sha256", base.sha256)


def _stamp(value: int) -> str:
    """A TimeDateStamp: seconds since 1970, or (reproducible builds) a hash that only looks like that."""
    return f"{value:#010x} (as a time {datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ})"


def _field(out: Output, label: str, text: str) -> None:
    out.line(f"  {label:<15}{text}")
