"""libebml: a C++ library, and a virtual member function."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

CASES = (
    Case(
        Package(
            "libebml",
            "1.4.4-1+deb12u1",
            f"cmake -B build -DCMAKE_BUILD_TYPE=None -DBUILD_SHARED_LIBS=ON -DCMAKE_CXX_FLAGS='{FLAGS}'"
            " && make -C build -j2",
            "build/libebml.so.5.0.0",
        ),
        "CVE-2023-52339",
        ("CVE-2023-52339.patch",),
        Patched(
            library,
            frozenset({"_ZN7libebml13MemIOCallback4readEPvm"}),
            HostProgram("libebml.cpp", ("build/libebml.so",), (".", "build")),
        ),
    ),
)
