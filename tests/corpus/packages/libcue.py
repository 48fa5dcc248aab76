"""libcue: one line in one function."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

LIBCUE = Package(
    "libcue",
    "2.2.1-4+deb12u1",
    f"cmake -B build -DCMAKE_C_FLAGS='{FLAGS}' -DCMAKE_BUILD_TYPE=None -DBUILD_SHARED_LIBS=ON && make -C build -j2 cue",
    "build/libcue.so.2.2.1",
)

CASES = (
    Case(
        LIBCUE,
        "CVE-2023-43641",
        ("CVE-2023-43641.patch",),
        Patched(library, frozenset({"track_set_index"}), HostProgram("libcue.c", ("build/libcue.so",))),
        quick=True,
    ),
)
