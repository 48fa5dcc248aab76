"""What the commands that work on distribution packages share."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from midflight.cli.output import Output
from midflight.errors import InputError

if TYPE_CHECKING:
    from midflight.forge.capture.wholebuild import Running
    from midflight.forge.packages.forging import Mapped, PackageRequest
    from midflight.forge.packages.model import PackageSource, Shipped


def package_source(args: argparse.Namespace, work: Path, out: Output) -> PackageSource:
    """The package format of this machine, with its cache below the work folder."""
    from midflight.forge.packages.debian import Debian

    return Debian(work / "packages", out.progress, build_root=args.build_root and args.build_root.absolute())


def package_request(args: argparse.Namespace, work: Path) -> PackageRequest:
    """What --debian and the options that go with it ask for.

    Raises:
        InputError: --debian is no name with an optional version.
    """
    from midflight.forge.packages.forging import PackageRequest

    name, equals, version = args.debian.partition("=")
    if not name or (equals and not version):
        raise InputError(f"--debian {args.debian!r} is not PKG or PKG=VERSION, as in expat=2.5.0-1+deb12u1")
    return PackageRequest(
        name, version or None, args.fix, args.running, tuple(args.image), _older_builds(work / "mapped")
    )


def _older_builds(folder: Path) -> Mapped:
    """Finds the older builds that processes still have mapped though an upgrade replaced the files.

    They are copied into ``folder``: the processes may end at any time.
    """

    def mapped(files: Sequence[Shipped]) -> Sequence[Running]:
        from midflight.cli.processes import chosen
        from midflight.engine.modules import Files
        from midflight.errors import MidflightError
        from midflight.forge.capture.wholebuild import Running
        from midflight.image.elf import ElfFile

        names = {Path(item.name).name: item.name for item in files}
        found: dict[str, Running] = {}
        with Files() as opened:
            for item in files:
                with ElfFile.open(item.file) as own:
                    found[own.build_id or ""] = Running(item.file, item.name)
            current = set(found)
            for process in chosen(None):
                try:
                    for mapping in process.maps():
                        gone = mapping.path.removesuffix(" (deleted)")
                        name = names.get(gone.rpartition("/")[2])
                        if not mapping.executable or gone == mapping.path or name is None:
                            continue
                        _, elf = opened.image(process, mapping)
                        if elf is None or elf.build_id is None or elf.build_id in found:
                            continue
                        copy = folder / elf.build_id / Path(name).name
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(process.module_path(mapping), copy)
                        found[elf.build_id] = Running(copy, name)
                except (MidflightError, OSError):
                    continue
        return [running for build_id, running in found.items() if build_id not in current]

    return mapped
