"""What was published, for fast questions: which baseline an image belongs to, what a package has."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from midflight.server.domain.model import Content, ContentKind, Device


class Catalogue:
    """All content of a repository, revoked content too (it may still run somewhere)."""

    def __init__(self, contents: Iterable[Content] = ()) -> None:
        self.contents: dict[str, Content] = {}
        self._baseline_of: dict[str, Content] = {}
        self._of_package: dict[str, list[Content]] = {}
        self._images_of: dict[str, set[str]] = {}
        for content in sorted(contents, key=attrgetter("sequence")):
            self.contents[content.id] = content
            self._of_package.setdefault(content.package, []).append(content)
            self._images_of.setdefault(content.package, set()).update(content.images)
            if content.kind is ContentKind.BASELINE:
                self._baseline_of.update(dict.fromkeys(content.images, content))

    def __getitem__(self, content: str) -> Content:
        return self.contents[content]

    def of_package(self, package: str) -> list[Content]:
        """In order of their sequence."""
        return self._of_package.get(package, [])

    def baseline_of(self, build_id: str) -> Content | None:
        """The baseline that installs an image, if it was published here."""
        return self._baseline_of.get(build_id)

    def installed(self, device: Device, package: str) -> Content | None:
        """The baseline of a package that a device runs from disk; of several images, the oldest.

        A baseline says which images it installs, so they need not belong to a package of the device's own database.
        """
        found = [
            baseline
            for image in device.images or ()
            if (baseline := self._baseline_of.get(image.build_id)) is not None
            and image.package in (package, "")
            and baseline.package == package
        ]
        return min(found, key=attrgetter("sequence"), default=None)

    def concerns(self, device: Device, package: str) -> bool:
        """Whether a device runs something of a package: an image that its own database of packages counts to it, or
        one that content of that name is for (what was installed by hand is in no database)."""
        images = self._images_of.get(package, set())
        return any(image.package == package or image.build_id in images for image in device.images or ())

    def newest_baseline(self, package: str) -> Content | None:
        """The newest baseline of a package that is not revoked: what a device without hotpatches falls back to."""
        return next(
            (c for c in reversed(self.of_package(package)) if c.kind is ContentKind.BASELINE and not c.revoked), None
        )

    def fixes(self, device: Device) -> dict[str, tuple[Content | None, Content | None]]:
        """Per package: the baseline that runs from disk, and the newest hotpatch that runs in every process that
        needs it."""
        found: dict[str, tuple[Content | None, Content | None]] = {}
        for image in device.images or ():
            baseline = self._baseline_of.get(image.build_id)
            if baseline is not None and image.package in (baseline.package, ""):
                known = found.get(baseline.package, (None, None))[0]
                # of several images of a package, the oldest counts
                if known is None or baseline.sequence < known.sequence:
                    found[baseline.package] = (baseline, None)
        for patch in device.patches:
            running = self.contents.get(patch.content) if patch.complete else None
            if running is not None:
                baseline, newest = found.get(running.package, (None, None))
                if newest is None or running.sequence > newest.sequence:
                    found[running.package] = (baseline, running)
        return found

    def fixed_by(
        self, device: Device, content: Content, fixes: dict[str, tuple[Content | None, Content | None]] | None = None
    ) -> Content | None:
        """What on this device contains the fix of a content: a hotpatch that runs everywhere, or its baseline; or None.

        Hotpatches are cumulative since their baseline, and a baseline contains every fix of lower sequence. So a
        hotpatch can contain more than a baseline that is not installed: that one would take fixes away.

        Args:
            device: as last reported.
            content: whose fix it is about.
            fixes: :meth:`fixes` of the device, for whoever asks about many contents.
        """
        baseline, hotpatch = (self.fixes(device) if fixes is None else fixes).get(content.package, (None, None))
        if baseline is not None and baseline.sequence >= content.sequence:
            return baseline
        return hotpatch if hotpatch is not None and hotpatch.sequence >= content.sequence else None
