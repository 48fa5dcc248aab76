"""lua: an interpreter, whose inner loop never leaves the stack."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

LUA = Package(
    "lua5.4",
    "5.4.4-3+deb12u1",
    # Debian's Makefile wants its own libtool; all but the two programs' own files are the library
    "cd src; echo '#define DEB_HOST_MULTIARCH \"none\"' > lua5.4-deb-multiarch.h;"
    " for source in l*.c; do case $source in lua.c|luac.c) ;; *)"
    f" gcc {FLAGS} -fPIC -DLUA_COMPAT_5_3 -DLUA_USE_LINUX -c $source;; esac; done;"
    " gcc -shared -Wl,-soname,liblua5.4.so.0 -o liblua5.4.so.0 l*.o -lm -ldl",
    "src/liblua5.4.so.0",
)

CASES = (
    Case(
        LUA,
        "CVE-2022-33099",
        ("0005-cve-2022-33099.patch",),
        # called from the interpreter's loop, which may be on the stack for ever, but does not change
        Patched(
            library,
            frozenset({"luaG_runerror", "luaV_concat"}),
            HostProgram("lua.c", ("src/liblua5.4.so.0",), ("src",)),
        ),
        quick=True,
    ),
)
