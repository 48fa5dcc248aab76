"""memcached: four threads, and logins by SASL."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Nothing, Package, Patched, Refused, Shipped, ShippedCase, Subject
from tests.corpus.targets import Daemon, ProbeError, Verdict, free_port


class Memcached(Daemon):
    """CVE-2026-47783: the check of a password stops at the user's line, so its time tells which users exist.

    Seen without a clock: the fixed check reads the file to its end, so a second line of the same user counts as well.
    """

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        passwords = scratch / "passwords"
        passwords.write_text("other:x\nmike@here:first\nmike@here:second\n")
        (scratch / "memcached.conf").write_text("mech_list: plain\n")
        command = [str(subject.image), "-S", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "4"]
        if os.geteuid() == 0:
            command += ["-u", "root"]
        environment = {"MEMCACHED_SASL_PWDB": str(passwords), "SASL_CONF_PATH": str(scratch)}
        super().__init__(command, scratch, port, environment)

    HEADER = ">BBHBBHIIQ"

    def _command(self, number: int, key: bytes = b"", value: bytes = b"") -> int:
        """One command in memcached's binary protocol; returns the status, of which 0 is success."""
        with self.connect() as connection:
            packed = struct.pack(self.HEADER, 0x80, number, len(key), 0, 0, 0, len(key) + len(value), 0, 0)
            connection.sendall(packed + key + value)
            answer = connection.recv(struct.calcsize(self.HEADER), socket.MSG_WAITALL)
        if len(answer) != struct.calcsize(self.HEADER):
            raise ProbeError("memcached closed the connection")
        status: int = struct.unpack(self.HEADER, answer)[5]
        return status

    def request(self) -> None:
        """Ask for the version, which needs no login."""
        if status := self._command(0x0B):
            raise ProbeError(f"memcached answered with status {status}")

    def _login(self, password: bytes) -> bool:
        """By SASL PLAIN."""
        return self._command(0x21, b"PLAIN", b"\0mike@here\0" + password) == 0

    def probe(self) -> Verdict:
        """Log in with either password; each connection goes to the next thread."""
        if not self._login(b"first") or self._login(b"wrong"):
            raise ProbeError("memcached does not check passwords at all")
        seen = {self._login(b"second") for _ in range(8)}
        if len(seen) != 1:
            raise ProbeError("the threads of memcached do not agree")
        return Verdict.FIXED if seen == {True} else Verdict.VULNERABLE


MEMCACHED = Package(
    "memcached",
    "1.6.18-1+deb12u1",
    "[ -e Makefile ] || ./configure --enable-sasl --enable-sasl-pwdb --disable-docs --disable-coverage"
    f" CFLAGS='{FLAGS}'; make -j2 memcached",
    "memcached",
)

WITH_PROXY = Package(
    "memcached",
    MEMCACHED.version,
    f"[ -e Makefile ] || ./configure --enable-proxy --disable-docs --disable-coverage CFLAGS='{FLAGS}';"
    " make -j2 -C vendor && make -j2 memcached",
    "memcached",
    ("CVE-2023-46853.patch",),
)

CASES = (
    Case(
        MEMCACHED,
        "CVE-2026-47783",
        ("0008-CVE-2026-47783-CVE-2026-47784.patch",),
        # a callback whose address stands in a static table; threads
        Patched(Memcached, frozenset({"sasl_server_userdb_checkpass"})),
        quick=True,
    ),
    Case(
        WITH_PROXY,
        "CVE-2023-46853",
        ("CVE-2023-46853.patch",),
        # a member in the middle of what every request has, and the scripts hold
        Refused(frozenset({"MF111"}), frozenset({"mcp_parser_s"})),
    ),
    ShippedCase(
        Shipped("memcached", "memcached", "1.6.18-1", "memcached"),
        "CVE-2026-47783",
        "CVE-2026-47783",
        # Debian builds it without the password file of its own
        Nothing(),
        quick=True,
    ),
)
