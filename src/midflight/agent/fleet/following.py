"""The instructions that this device holds: verified, kept, and never older than those before."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from midflight.agent.fleet.enrollment import KEPT, Enrolled
from midflight.agent.fleet.records import Records
from midflight.errors import InputError
from midflight.process.faults import point
from midflight.trust.errors import InstructionsRefused
from midflight.trust.files import replace_file
from midflight.trust.instructions import MAX_ENVELOPE, Instructions, verify_instructions


class Following:
    """The instructions of one device.

    The sequence of the newest is in the records, and in the envelope that is kept: whichever is higher counts, so that
    losing one of them lets nobody play older instructions.
    """

    def __init__(self, records: Records, enrolled: Enrolled) -> None:
        self._records = records
        self.enrolled = enrolled
        self.current: Instructions | None = None
        self._mark: object = None

    @property
    def last(self) -> int:
        """The highest sequence that was accepted; another device's do not count."""
        found = self._records.fact("sequence")
        return int(found["sequence"]) if found and found["device"] == self.enrolled.device else 0

    @property
    def held(self) -> int:
        """The sequence of the instructions that are held; 0: none."""
        return self.current.sequence if self.current is not None else 0

    def restore(self, now: datetime) -> None:
        """Take up the instructions that were kept.

        Raises:
            InstructionsRefused: they are not to be followed (any more).
        """
        try:
            envelope = (self.enrolled.folder / KEPT).read_bytes()
        except OSError:
            return
        self.current = self._verified(envelope, now, same=True)

    def accept(self, envelope: bytes, now: datetime) -> Instructions:
        """Follow these from now on.

        Raises:
            InstructionsRefused: they are not to be followed; those from before stay.
            InputError: they cannot be kept, and so are not followed yet.
        """
        found = self._verified(envelope, now, same=False)
        try:
            replace_file(self.enrolled.folder / KEPT, envelope, 0o600)
        except OSError as error:
            raise InputError(
                f"new instructions cannot be kept ({error.strerror}): the old ones stay; free some space"
            ) from None  # fmt: skip
        point("fleet-kept-instructions")
        self._records.remember({"sequence": {"device": self.enrolled.device, "sequence": found.sequence}})
        self.current = found
        return found

    def carried(self, path: Path, now: datetime) -> bool:
        """Take instructions from a file that somebody carried here, if it is new; whether it was.

        Raises:
            InstructionsRefused: they are not to be followed.
            InputError: they cannot be kept.
        """
        try:
            state = path.stat()
            mark = (state.st_mtime_ns, state.st_size, state.st_ino)
            if mark == self._mark:
                return False
            with path.open("rb") as file:
                envelope = file.read(MAX_ENVELOPE + 1)
        except OSError:
            return False  # not plugged in
        self._mark = mark
        try:
            self.accept(envelope, now)
        except InstructionsRefused as error:
            if error.reason == "replayed":
                return False  # the same file again
            raise
        return True

    def drop(self) -> None:
        """Follow nothing any more."""
        self.current = None

    def in_force(self, now: datetime) -> Instructions | None:
        """The instructions, while they hold."""
        return self.current if self.current is not None and now < self.current.expires else None

    def _verified(self, envelope: bytes, now: datetime, same: bool) -> Instructions:
        return verify_instructions(
            envelope, self.enrolled.instruction_keys, self.enrolled.device, now, self.last, same=same
        )
