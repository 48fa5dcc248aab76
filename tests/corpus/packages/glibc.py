"""glibc as Debian ships it, of an older version than the system's, in a process that is started by its own loader."""

from __future__ import annotations

from pathlib import Path

from tests.corpus.model import Files, HostProgram, Patched, Shipped, ShippedCase, Subject
from tests.corpus.targets import Host, Target

GLIBC = Shipped(
    "glibc",
    "libc6",
    "2.36-9+deb12u7",
    "libc.so.6",
    # the libraries for this machine's own word size, without the programs, the locales and the tests
    "export DEB_BUILD_OPTIONS='nocheck parallel=2' DEB_BUILD_PROFILES=nobiarch; make -f debian/rules configure_libc"
    " && make -C build-tree/amd64-libc -j2 lib",
    "build-tree/amd64-libc/libc.so",
)
NEWER = "2.36-9+deb12u14"


def _loaded(subject: Subject, scratch: Path) -> Target:
    """Start a host program with that C library, and all that belongs to it."""
    assert subject.program is not None
    loader = subject.image.parent / "ld-linux-x86-64.so.2"
    return Host(subject.program, subject.image.parent, scratch, loader=loader)


def _libc(host: str, *functions: str) -> Patched:
    return Patched(_loaded, frozenset(functions), HostProgram(host))


CASES = (
    ShippedCase(
        GLIBC,
        "CVE-2026-0861",
        Files(("malloc/malloc.c",), NEWER),
        # the allocator; it sets errno, which is thread-local
        _libc("glibc_memalign.c", "_int_memalign"),
        note="libc jumps over the lock prefix, into an instruction; errno has another name inside",
    ),
    ShippedCase(
        GLIBC,
        "CVE-2025-15281",
        Files(("posix/wordexp.c",), NEWER),
        _libc("glibc_wordexp.c", "wordexp"),
    ),
)
