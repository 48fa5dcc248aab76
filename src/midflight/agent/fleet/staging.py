"""Baselines on this device: laid ready beside what they replace, swapped in, and taken back.

A *file* baseline is copied to the file system of its place, with the owner and mode of what stands there. Swapping it
in is two steps, each atomic (rename(2), link(2)): the old file gets a second name, and then the new one its name. There
is no moment at which nothing stands at the place, and after a crash the names say how far it got. A *deb* baseline is
kept, and what is installed is packed again before dpkg installs it.

Running processes keep the file that they have mapped; the hotpatch serves them until they are restarted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from midflight.agent.fleet import deb
from midflight.agent.fleet.records import Baseline, Records
from midflight.errors import ImageError, InputError, MidflightError
from midflight.image.elf import ElfFile
from midflight.process.faults import point
from midflight.process.filelock import try_lock
from midflight.trust.content import Content
from midflight.trust.files import sync_folder

LOCK = "baselines.lock"
_PATIENCE = 60.0


class StagingError(MidflightError):
    """A baseline cannot be laid ready, swapped in, or taken back; what was in place stays so."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A baseline that was fetched and verified, and whose order it was."""

    content: Content
    file: Path
    action: str
    deployment: str | None
    deadline: float | None


class Staging:
    """The baselines of one device.

    Args:
        folder: the agent's folder of state.
        boot: this start of the machine.
        root: where the system is installed; packages alone heed it.
    """

    def __init__(self, folder: Path, records: Records, boot: str, root: Path = Path("/")) -> None:
        self._folder, self._records, self._boot, self._root = folder, records, boot, root

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """One at a time works on baselines: the agent, or a command."""
        handle = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            deadline = time.monotonic() + _PATIENCE
            while not try_lock(handle):
                if time.monotonic() > deadline:
                    raise StagingError("somebody else works on the baselines of this machine; try again later")
                time.sleep(0.05)
            yield
        finally:
            os.close(handle)

    # -- laying ready ------------------------------------------------------------------------------------------------

    def stage(self, offer: Offer, place: Path | None, old_images: Collection[str]) -> Baseline:
        """Lay a baseline ready. Nothing that is in use changes.

        Args:
            place: of a file baseline.
            old_images: of a package: build-ids of its files that are mapped now.

        Raises:
            StagingError: it cannot be.
            StateError: it cannot be recorded.
        """
        package = offer.content.about.package
        assert package is not None
        with self.exclusively():
            if package.format == "deb":
                made = self._stage_deb(offer, old_images)
            else:
                assert place is not None
                made = self._stage_file(offer, Path(os.path.realpath(place)))
            return self._records.baseline(made)

    def _stage_file(self, offer: Offer, place: Path) -> Baseline:
        about, sha256 = offer.content.about, offer.content.sha256
        if not place.is_file():
            raise StagingError(f"{place} is not there, so {about.name} has nothing to replace; correct agent.toml")
        new = place.with_name(f".{place.name}.midflight-{sha256[:12]}.new")
        old = place.with_name(f".{place.name}.midflight-{sha256[:12]}.old")
        try:
            _copy_beside(offer.file, new, place)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise StagingError(f"{new} cannot be written: {error.strerror}; free some space") from None
        build_id = _build_id(new)
        if about.images and build_id not in about.images:
            new.unlink(missing_ok=True)
            raise StagingError(f"{about.name} {about.sequence} is not the image that its description says ({build_id})")
        point("fleet-staged-file")
        replaced = tuple(filter(None, (_build_id(place),)))
        return self._new(
            offer, str(new), str(place), str(old), about.images or (build_id,) if build_id else (), replaced
        )

    def _stage_deb(self, offer: Offer, old_images: Collection[str]) -> Baseline:
        package = offer.content.about.package
        assert package is not None
        deb.check(offer.file, package)
        if not deb.installed_version(package.name, self._root):
            raise StagingError(f"{package.name} is not installed here, so there is nothing to replace")
        kept = self._folder / "kept" / f"{package.name}.{offer.content.sha256[:12]}.old.deb"
        images = tuple(sorted(old_images))
        return self._new(offer, str(offer.file), package.name, str(kept), offer.content.about.images, images)

    def _new(
        self, offer: Offer, file: str, place: str, kept: str, images: tuple[str, ...], replaced: tuple[str, ...]
    ) -> Baseline:
        about = offer.content.about
        assert about.package is not None
        return Baseline(
            offer.content.sha256, about.name, about.sequence, about.package.format, file, place, kept, images, replaced,
            "staged", offer.action, offer.deployment, time.time(), self._boot, offer.deadline,
        )  # fmt: skip

    # -- swapping in -------------------------------------------------------------------------------------------------

    def swap(self, baseline: Baseline) -> Baseline:
        """Put a baseline in its place; goes on where an earlier try was killed.

        Raises:
            StagingError: it cannot be; recorded as failed when trying again would not help.
            StateError: it cannot be recorded.
        """
        with self.exclusively():
            current = {one.sha256: one for one in self._records.baselines()}.get(baseline.sha256)
            if current is None or current.state not in ("staged", "swapping"):
                return current or baseline  # somebody else was faster
            if current.format == "file" and current.state == "staged":
                self._check_unchanged(current)
            current = self._records.baseline(replace(current, state="swapping", since=time.time()))
            try:
                (_swap_file if current.format == "file" else self._swap_deb)(current)
            except (OSError, deb.PackageError) as error:
                self._records.baseline(replace(current, state="failed", detail=str(error), since=time.time()))
                raise StagingError(f"{current.name} {current.sequence} cannot be put in its place: {error}") from None
            return self._records.baseline(replace(current, state="swapped", since=time.time()))

    def _check_unchanged(self, baseline: Baseline) -> None:
        found = _build_id(Path(baseline.place))
        if baseline.replaced and found not in baseline.replaced:
            why = f"{baseline.place} was replaced by something else since it was laid ready"
            self._records.baseline(replace(baseline, state="failed", detail=why, since=time.time()))
            Path(baseline.file).unlink(missing_ok=True)
            raise StagingError(f"{baseline.name} {baseline.sequence}: {why}; it is not used")

    def _swap_deb(self, baseline: Baseline) -> None:
        kept = Path(baseline.kept)
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not kept.exists():
            deb.pack_installed(baseline.place, kept, self._root)
        point("fleet-kept")
        deb.install(Path(baseline.file), self._root)
        point("fleet-installed")

    # -- the way back ------------------------------------------------------------------------------------------------

    def take_back(self, baseline: Baseline) -> Baseline:
        """Put back what was there before. Who runs the new one keeps it until a restart.

        Raises:
            StagingError: there is nothing to go back to, or it cannot be put back.
            StateError: it cannot be recorded.
        """
        with self.exclusively():
            kept = Path(baseline.kept)
            if baseline.state == "staged":
                if baseline.format == "file":
                    Path(baseline.file).unlink(missing_ok=True)
            elif baseline.state in ("swapped", "current", "returning", "failed"):
                if not kept.exists() and baseline.state != "returning":
                    raise StagingError(f"{kept} is gone: there is nothing to go back to")
                self._records.baseline(replace(baseline, state="returning", since=time.time()))
                try:
                    self._return(baseline, kept)
                except (OSError, deb.PackageError) as error:
                    raise StagingError(f"{baseline.place} cannot be put back: {error}; {kept} has it") from None
            return self._records.baseline(replace(baseline, state="returned", since=time.time()))

    def _return(self, baseline: Baseline, kept: Path) -> None:
        if not kept.exists():
            return  # killed after the last step
        if baseline.format == "deb":
            deb.install(kept, self._root)
            kept.unlink()
            return
        kept.replace(baseline.place)
        sync_folder(kept.parent)

    def settle(self) -> list[Baseline]:
        """After a restart of the agent: finish what was begun. Returns those that were."""
        done = []
        for one in self._records.baselines():
            with contextlib.suppress(StagingError):
                if one.state == "swapping":
                    done.append(self.swap(one))
                elif one.state == "returning":
                    done.append(self.take_back(one))
        return done


def find(baselines: Collection[Baseline], name: str) -> Baseline:
    """A baseline by its name; the newest, when there are several.

    Raises:
        InputError: there is none.
    """
    found = [one for one in baselines if one.name == name]
    if not found:
        names = ", ".join(sorted({one.name for one in baselines})) or "none"
        raise InputError(f"there is no baseline {name} on this machine; there are: {names}")
    return max(found, key=lambda one: one.sequence)


def _copy_beside(source: Path, new: Path, place: Path) -> None:
    state = place.stat()
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    with open(descriptor, "wb") as target, open(source, "rb") as file:
        shutil.copyfileobj(file, target, 1 << 20)
        if hasattr(os, "fchown"):
            if (state.st_uid, state.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, state.st_uid, state.st_gid)
            os.fchmod(descriptor, state.st_mode & 0o7777)
        if hasattr(os, "listxattr"):  # labels of SELinux, capabilities
            for name in os.listxattr(place):
                with contextlib.suppress(OSError):
                    os.setxattr(descriptor, name, os.getxattr(place, name))
        target.flush()
        os.fsync(descriptor)
    sync_folder(new.parent)


def _swap_file(baseline: Baseline) -> None:
    new, place, old = Path(baseline.file), Path(baseline.place), Path(baseline.kept)
    if not new.exists():
        return  # killed after the last step
    if not old.exists():
        try:
            os.link(place, old)
        except OSError:  # a file system without links
            temporary = old.with_name(old.name + ".tmp")
            _copy_beside(place, temporary, place)
            temporary.replace(old)
        sync_folder(old.parent)
    point("fleet-kept")
    new.replace(place)
    sync_folder(place.parent)
    point("fleet-swapped")


def _build_id(path: Path) -> str:
    try:
        with ElfFile.open(path) as elf:
            return elf.build_id or ""
    except (ImageError, OSError):
        return ""
