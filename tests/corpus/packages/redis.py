"""redis: one process, its commands and its scripts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from tests.corpus.model import Case, HostProgram, Package, Patched, Refused, Subject
from tests.corpus.targets import Daemon, ProbeError, Verdict, free_port


class Redis(Daemon):
    """A server that saves nothing."""

    def __init__(
        self, subject: Subject, scratch: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        port = free_port()
        base = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        super().__init__([str(subject.image), *base, *options], scratch, port, environment)

    def request(self) -> None:
        """Write a key, and read it."""
        with self.connect() as connection:
            answers = [self.command(connection, *words) for words in ((b"SET", b"key", b"value"), (b"GET", b"key"))]
        if answers != [b"+OK", b"value"]:
            raise ProbeError(f"redis answered {answers}")

    def command(self, connection: socket.socket, *words: bytes) -> bytes:
        """Send one command; returns the first line of the answer, or the string if that is the answer."""
        connection.sendall(redis_command(*words))
        with connection.makefile("rb") as replies:
            line = replies.readline()
            if line.startswith(b"$") and not line.startswith(b"$-"):
                return replies.read(int(line[1:]) + 2)[:-2]
            return line.rstrip(b"\r\n")


class RedisSelector(Redis):
    """CVE-2024-51741: an ACL key permission without a flag is accepted (and crashes the server when it is used)."""

    def probe(self) -> Verdict:
        """Give such a permission to a user that nobody is."""
        with self.connect() as connection:
            answer = self.command(connection, b"ACL", b"SETUSER", b"probe", b"%")
            self.command(connection, b"ACL", b"DELUSER", b"probe")
        if answer == b"+OK":
            return Verdict.VULNERABLE
        if b"Syntax error" in answer:
            return Verdict.FIXED
        raise ProbeError(f"redis answered {answer!r}")


class RedisBuffer(Redis):
    """CVE-2025-21605: a client that never logged in and reads nothing makes the server buffer without a limit."""

    ENOUGH = 100_000
    """Bytes; a hundred times what a client may have buffered before it has logged in."""

    def __init__(self, subject: Subject, scratch: Path) -> None:
        super().__init__(subject, scratch, "--requirepass", "secret")

    def request(self) -> None:
        """Log in."""
        with self.connect() as connection:
            if (answer := self.command(connection, b"AUTH", b"secret")) != b"+OK":
                raise ProbeError(f"redis answered {answer!r}")

    def probe(self) -> Verdict:
        """Send commands, and see from another connection what becomes of their answers."""
        with self.connect() as stranger, self.connect() as admin:
            if self.command(admin, b"AUTH", b"secret") != b"+OK":
                raise ProbeError("redis does not let the administrator in")
            address = b"addr=%s:%d " % tuple(x if isinstance(x, int) else x.encode() for x in stranger.getsockname())
            stranger.setblocking(False)
            for _ in range(20_000):
                try:
                    stranger.send(b"GET x\r\n" * 1000)
                except BlockingIOError:
                    pass
                except (ConnectionResetError, BrokenPipeError):
                    return Verdict.FIXED
                lines = self.command(admin, b"CLIENT", b"LIST").splitlines()
                found = [line for line in lines if address in line]
                if not found:
                    return Verdict.FIXED
                if int(found[0].partition(b" omem=")[2].split()[0]) > self.ENOUGH:
                    return Verdict.VULNERABLE
        raise ProbeError("redis neither buffers answers nor ends the connection")


class RedisReplies(Redis):
    """CVE-2025-67733: a line break in what a client sent goes into error replies, and starts a reply of its own."""

    def probe(self) -> Verdict:
        """Two ways lead there, through three objects: they must agree."""
        ways = (
            (b"FUNCTION", b"LIST", b"x\r\n+INJECTED"),
            (b"EVAL", b"error({err=ARGV[1]})", b"0", b"no\r\n+INJECTED"),
        )
        escaped = set()
        for words in ways:
            with self.connect() as connection:
                line = self.command(connection, *words)
            if not line.startswith(b"-"):
                raise ProbeError(f"redis answered {line!r}")
            escaped.add(b"INJECTED" in line)
        if len(escaped) != 1:
            raise ProbeError("redis escapes line breaks in one place and not in the other")
        return Verdict.FIXED if escaped == {True} else Verdict.VULNERABLE


class RedisAccept(Redis):
    """CVE-2025-48367: when a client is gone before it is accepted, the server stops accepting for that time.

    That cannot be brought about from outside, so a library between the server and the kernel lets accept4 fail once,
    where a file asks for it. A server that stops accepting for it says so in its log; one that goes on does not.
    """

    def __init__(self, subject: Subject, scratch: Path) -> None:
        self._fail, self._log_file = scratch / "fail", scratch / "redis.log"
        environment = {"LD_PRELOAD": str(subject.program), "FAILING_ACCEPT": str(self._fail)}
        super().__init__(subject, scratch, "--logfile", str(self._log_file), environment=environment)

    def probe(self) -> Verdict:
        """Let one accept fail, and see that the next one works."""
        before = self._log_file.stat().st_size
        self._fail.touch()
        self.request()
        if self._fail.exists():
            raise ProbeError("redis never called accept4")
        with self._log_file.open() as log:
            log.seek(before)
            return Verdict.VULNERABLE if "Accepting client connection" in log.read() else Verdict.FIXED


def redis_command(*words: bytes) -> bytes:
    """One command in the protocol of redis (RESP)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


REDIS = Package(
    "redis",
    "5:7.0.15-1~deb12u10",
    # the build asks git what it builds: not in the repository that this test is a part of
    "export GIT_CEILING_DIRECTORIES=$PWD; make -j2 -C src redis-server MALLOC=libc USE_SYSTEMD=no OPTIMIZATION=-O2",
    "src/redis-server",
    (
        "0001-Limiting-output-buffer-for-unauthenticated-client-CV.patch",
        "0002-Fix-Read-Write-key-pattern-selector-CVE-2024-51741-1.patch",
        "0007-CVE-2025-48367.patch",
        "CVE-2025-46818.patch",
        "CVE-2025-46819.patch",  # no case, but it stands on the one before
        "CVE-2025-67733.patch",
    ),
)

CASES = (
    Case(
        REDIS,
        "CVE-2024-51741",
        ("0002-Fix-Read-Write-key-pattern-selector-CVE-2024-51741-1.patch",),
        Patched(RedisSelector, frozenset({"ACLSetSelector"})),
    ),
    Case(
        REDIS,
        "CVE-2025-21605",
        ("0001-Limiting-output-buffer-for-unauthenticated-client-CV.patch",),
        Patched(RedisBuffer, frozenset({"checkClientOutputBufferLimits"})),
    ),
    Case(
        REDIS,
        "CVE-2025-67733",
        ("CVE-2025-67733.patch",),
        # new global functions that functions of three other objects call; line numbers alone move in 46 functions
        Patched(
            RedisReplies,
            frozenset(
                {
                    "functionListCommand",
                    "RM_ReplyWithSimpleString",
                    "addReplyStatusFormat",
                    "luaReplyToRedisReply",
                    "luaCallFunction",
                }
            ),
        ),
        reviewed={
            "MF170:addReplyStatusSafe": "A new function. The string that it makes is freed before it returns.",
            "MF170:luaReplyToRedisReply": "The string of a status reply was made and freed here; addReplyStatusSafe "
            "does both now. None is kept or handed on, before or after.",
        },
    ),
    Case(
        REDIS,
        "CVE-2025-48367",
        ("0007-CVE-2025-48367.patch",),
        # A new global function; its callers are known to the event loop by pointers on the heap. In writeToClient a
        # line number alone moves, but that number is also written out in the source.
        Patched(
            RedisAccept,
            frozenset(
                {"acceptTcpHandler", "acceptTLSHandler", "acceptUnixHandler", "clusterAcceptHandler", "writeToClient"}
            ),
            HostProgram("failing_accept.c", shared=True),
        ),
    ),
    Case(
        REDIS,
        "CVE-2025-46818",
        ("CVE-2025-46818.patch",),
        # the tables are read when the Lua globals are made, at start; and the type of the global "server" changes
        Refused(frozenset({"MF111", "MF116"}), frozenset({"redisServer", "static_configs"})),
    ),
)
