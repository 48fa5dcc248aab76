"""cjson: a small library of two, and a clone that the compiler made."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

CJSON = Package(
    "cjson",
    "1.7.15-1+deb12u4",
    f"cmake -B build -DCMAKE_C_FLAGS='{FLAGS}' -DCMAKE_BUILD_TYPE=None -DENABLE_CJSON_UTILS=On -DENABLE_CJSON_TEST=Off"
    " && make -C build -j2",
    "build/libcjson_utils.so.1.7.15",
)

CASES = (
    Case(
        CJSON,
        "CVE-2025-57052",
        ("CVE-2025-57052.patch",),
        Patched(
            library,
            # static, and specialised by the compiler: its symbol is decode_array_index_from_pointer.constprop.0
            frozenset({"decode_array_index_from_pointer"}),
            HostProgram("cjson.c", ("build/libcjson_utils.so", "build/libcjson.so")),
        ),
        quick=True,
    ),
)
