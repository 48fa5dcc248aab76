"""glib: a counter that is static in a function, and keeps its value."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

GLIB = Package(
    "glib2.0",
    "2.74.6-2+deb12u9",
    "[ -e build ] || meson setup build --buildtype=plain -Dtests=false -Dlibmount=disabled -Dselinux=disabled"
    f" -Dnls=disabled -Dc_args='{FLAGS}'; ninja -C build -j2 glib/libglib-2.0.so.0.7400.6",
    "build/glib/libglib-2.0.so.0.7400.6",
)

CASES = (
    Case(
        GLIB,
        "CVE-2025-7039",
        ("gfileutils-fix-computation-of-temporary-file-name.patch",),
        Patched(
            library,
            frozenset({"get_tmp_file"}),
            HostProgram("glib.c", ("build/glib/libglib-2.0.so.0.7400.6",), ("glib", ".", "build/glib", "build")),
        ),
        reviewed={"MF111:counter.13": "int becomes guint: it counts up from 0, and both hold that alike"},
    ),
)
