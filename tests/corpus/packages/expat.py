"""expat: line numbers that are arguments, a no-op on 64 bits, and a struct that grows."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Nothing, Package, Patched, Refused, library

EXPAT = Package(
    "expat",
    "2.5.0-1+deb12u2",
    "cd expat; [ -e Makefile ] || { ./buildconf.sh && ./configure --without-xmlwf --without-examples --without-tests"
    f" --without-docbook --disable-static CFLAGS='{FLAGS}'; }}; make -C lib -j2",
    "expat/lib/.libs/libexpat.so.1.8.10",
    (
        "CVE-2024-45490.patch",
        "CVE-2024-45491.patch",
        "expat-2.5.0-CVE-2024-50602.patch",
        "expat-2.5.0-CVE-2024-8176.patch",
    ),
)
_LINKED = ("expat/lib/.libs/libexpat.so",)
_INCLUDE = ("expat/lib",)
CASES = (
    Case(
        EXPAT,
        "CVE-2024-45490",
        ("CVE-2024-45490.patch",),
        # the line numbers of 19 further functions move, some of them ordinary arguments
        Patched(library, frozenset({"XML_ParseBuffer"}), HostProgram("expat_buffer.c", _LINKED, _INCLUDE)),
        quick=True,
    ),
    Case(
        EXPAT,
        "CVE-2024-50602",
        ("expat-2.5.0-CVE-2024-50602.patch",),
        # a table of strings grows, a public enum gets a constant, and static locals are numbered anew
        Patched(
            library,
            frozenset({"XML_StopParser", "XML_ErrorString"}),
            HostProgram("expat_stop.c", _LINKED, _INCLUDE),
        ),
        quick=True,
    ),
    Case(
        EXPAT,
        "CVE-2024-45491",
        ("CVE-2024-45491.patch",),
        # its code is for machines of 32 bits
        Nothing(),
        quick=True,
    ),
    Case(
        EXPAT,
        "CVE-2024-8176",
        ("expat-2.5.0-CVE-2024-8176.patch",),
        # parsers live as long as connections
        Refused(frozenset({"MF111"}), frozenset({"XML_ParserStruct", "open_internal_entity"})),
        quick=True,
    ),
)
