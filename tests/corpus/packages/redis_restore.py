"""redis as Debian ships it: values that a client restores, made by hand."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

from tests.corpus.model import Patched, Shipped, ShippedCase, Subject
from tests.corpus.packages.redis import Redis
from tests.corpus.targets import ProbeError, Verdict


class Restoring(Redis):
    """Restores a value that the fixed server refuses. A name is used once: what was restored is broken, so stays."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        program = scratch / "redis-server"  # Debian's binary has another name, and does what the name says
        program.symlink_to(subject.image)
        self._numbers = itertools.count()
        super().__init__(Subject(program), scratch)

    def _restores(self, value: bytes) -> bool:
        with self.connect() as connection:
            answer = self.command(connection, b"RESTORE", b"restored%d" % next(self._numbers), b"0", value)
        if answer != b"+OK" and b"Bad data format" not in answer:
            raise ProbeError(f"redis answered {answer!r}")
        return answer == b"+OK"

    def _judge(self, good: bytes, bad: bytes) -> Verdict:
        if not self._restores(good):
            raise ProbeError("redis does not restore a good value")
        return Verdict.VULNERABLE if self._restores(bad) else Verdict.FIXED


class SharedEntry(Restoring):
    """CVE-2026-66373: one entry of a stream is pending for two consumers, and is freed by each of them."""

    def probe(self) -> Verdict:
        """Take a dump in which the second consumer has nothing pending, and give it what the first one has."""
        name = b"stream%d" % next(self._numbers)
        with self.connect() as connection:
            for words in (
                (b"XADD", name, b"1-1", b"field", b"value"),
                (b"XGROUP", b"CREATE", name, b"group", b"0"),
                (b"XREADGROUP", b"GROUP", b"group", b"first", b"STREAMS", name, b">"),
            ):
                self.command(connection, *words)
        with self.connect() as connection:
            self.command(connection, b"XGROUP", b"CREATECONSUMER", name, b"group", b"second")
            dump = self.command(connection, b"DUMP", name)
        body = dump[:-10]  # without the version and the checksum
        if not body.endswith(b"\0"):
            raise ProbeError(f"redis dumps {dump!r}")
        entry = struct.pack(">QQ", 1, 1)
        return self._judge(dump, sealed(body[:-1] + b"\1" + entry, dump[-10:-8]))


def sealed(body: bytes, version: bytes) -> bytes:
    """A value as RESTORE takes it: followed by the version of its format and a checksum (CRC-64 of Jones)."""
    checksum = 0
    for byte in body + version:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x95AC9329AC4BC9B5 if checksum & 1 else 0)
    return body + version + struct.pack("<Q", checksum)


CASES = (
    ShippedCase(
        Shipped("redis", "redis-tools", "5:7.0.15-1~deb12u7", "redis-check-aof"),
        "CVE-2026-66373",
        "CVE-2026-66373",
        # A function of 14 KB; the server is the binary of another package. CVE-2026-25243 goes along: it stands on it.
        Patched(SharedEntry, frozenset({"_sdsnewlen", "rdbLoadObject", "zipmapValidateIntegrity"})),
        reviewed={
            "MF170:rdbLoadObject": "The listpack was made by this very call, for an object that is given up: nobody "
            "else knows it. What is no more freed is freed with the object that holds it."
        },
    ),
)
