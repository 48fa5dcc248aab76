"""tinyxml: a library in C++."""

from __future__ import annotations

from tests.corpus.model import FLAGS, Case, HostProgram, Package, Patched, library

TINYXML = Package(
    "tinyxml",
    "2.6.2-6+deb12u1",
    f"make -j2 TINYXML_USE_STL=YES CXXFLAGS='{FLAGS} -fPIC -DTIXML_USE_STL' && g++ -shared"
    " -Wl,-soname,libtinyxml.so.2.6.2 -o libtinyxml.so.2.6.2 tinyxml.o tinyxmlparser.o tinyxmlerror.o",
    "libtinyxml.so.2.6.2",
    stripped=False,
)

CASES = (
    Case(
        TINYXML,
        "CVE-2021-42260",
        ("CVE-2021-42260.patch",),
        Patched(
            library,
            # a member function; the line numbers of assertions move in six others
            frozenset({"_ZN16TiXmlParsingData5StampEPKc13TiXmlEncoding"}),
            HostProgram("tinyxml.cpp", ("libtinyxml.so.2.6.2",)),
        ),
        quick=True,
    ),
)
