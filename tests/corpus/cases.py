"""The cases of the corpus: real security fixes of Debian packages, and what must become of each.

A case names the Debian patches that are the fix. The vulnerable source is Debian's own without them; the build command
is what an administrator would use, with the parts left out that the hole does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.corpus import daemons
from tests.corpus.targets import Host, Target

HOSTS = Path(__file__).parent / "hosts"

FLAGS = "-O2 -g"


@dataclass(frozen=True, slots=True)
class Package:
    """A Debian source package, and the image in it that the fixes concern."""

    name: str
    version: str
    """Debian's, epoch included; should it have left the mirror, then what is there is taken."""
    make: str
    """The build command, for a shell in the source tree. It may run again in a tree that was built."""
    image: str
    """Path in the built tree."""


@dataclass(frozen=True, slots=True)
class HostProgram:
    """A program that uses a library under test, compiled against its vulnerable tree."""

    source: str
    """In ``hosts/``."""
    libraries: tuple[str, ...]
    """Linked files, in the tree."""
    include: str = "."
    """Folder with the headers, in the tree."""


@dataclass(frozen=True, slots=True)
class Patched:
    """The fix must become a hotpatch that closes the hole in the live process, and opens it again when reverted."""

    start: Callable[[Path, Path], Target]
    """From the tree that was built, and a scratch folder."""
    functions: frozenset[str]
    """What the hotpatch must replace: all that the fix changes, and nothing whose line numbers alone moved."""
    host: HostProgram | None = None
    doubtful: frozenset[str] = frozenset()
    """What it may replace besides: only a line number moved, but that number is also written out in the source."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The forge must refuse the fix."""

    codes: frozenset[str]
    """Refusals that must be among those reported."""
    names: frozenset[str]
    """What the refusals must name between them: a struct, a variable, a function."""


@dataclass(frozen=True, slots=True)
class Case:
    """One published fix."""

    package: Package
    cve: str
    patches: tuple[str, ...]
    """Names in debian/patches, in the order of the series."""
    expected: Patched | Refused
    quick: bool = False
    """Whether it belongs to every test run, rather than to ``make corpus`` alone."""

    @property
    def name(self) -> str:
        """As it is called in test reports, and to pick it with ``pytest -k``."""
        return f"{self.package.name}-{self.cve}"


def _library(folder: str) -> Callable[[Path, Path], Target]:
    """Start the host program that was built for a library in ``folder`` of the tree."""

    def start(tree: Path, scratch: Path) -> Target:
        return Host(tree.parent / "host", tree / folder, scratch)

    return start


CJSON = Package(
    "cjson",
    "1.7.15-1+deb12u4",
    f"cmake -B build -DCMAKE_C_FLAGS='{FLAGS}' -DCMAKE_BUILD_TYPE=None -DENABLE_CJSON_UTILS=On -DENABLE_CJSON_TEST=Off"
    " && make -C build -j2",
    "build/libcjson_utils.so.1.7.15",
)
TINYXML = Package(
    "tinyxml",
    "2.6.2-6+deb12u1",
    f"make -j2 TINYXML_USE_STL=YES CXXFLAGS='{FLAGS} -fPIC -DTIXML_USE_STL' && g++ -shared"
    " -Wl,-soname,libtinyxml.so.2.6.2 -o libtinyxml.so.2.6.2 tinyxml.o tinyxmlparser.o tinyxmlerror.o",
    "libtinyxml.so.2.6.2",
)
MEMCACHED = Package(
    "memcached",
    "1.6.18-1+deb12u1",
    "[ -e Makefile ] || ./configure --enable-sasl --enable-sasl-pwdb --disable-docs --disable-coverage"
    f" CFLAGS='{FLAGS}'; make -j2 memcached",
    "memcached",
)
DNSMASQ = Package(
    "dnsmasq",
    "2.90-4~deb12u2",
    f"make -j2 CFLAGS='{FLAGS}' COPTS=-DHAVE_DNSSEC",
    "src/dnsmasq",
)
NGINX = Package(
    "nginx",
    "1.22.1-9+deb12u9",
    "[ -e objs/Makefile ] || ./configure --prefix=/usr/share/nginx --with-threads --with-mail"
    f" --with-cc-opt='{FLAGS}'; make -j2",
    "objs/nginx",
)
REDIS = Package(
    "redis",
    "5:7.0.15-1~deb12u10",
    # the build asks git what it builds: not in the repository that this test is a part of
    "export GIT_CEILING_DIRECTORIES=$PWD; make -j2 -C src redis-server MALLOC=libc USE_SYSTEMD=no OPTIMIZATION=-O2",
    "src/redis-server",
)
HAPROXY = Package(
    "haproxy",
    "2.6.12-1+deb12u3",
    f"make -j2 haproxy TARGET=linux-glibc CPU_CFLAGS='{FLAGS}'",
    "haproxy",
)
LIBXML2 = Package(
    "libxml2",
    "2.9.14+dfsg-1.3~deb12u6",
    "[ -e Makefile ] || { autoreconf -fi && ./configure --disable-static --without-python --without-lzma"
    f" --without-zlib --without-iconv CFLAGS='{FLAGS}'; }}; make -j2 libxml2.la",
    ".libs/libxml2.so.2.9.14",
)
MOSQUITTO = Package(
    "mosquitto",
    "2.0.11-1.2+deb12u2",
    f"make -j2 -C src WITH_DOCS=no WITH_CJSON=no CFLAGS='{FLAGS}'",
    "src/mosquitto",
)

CASES: tuple[Case, ...] = (
    Case(
        CJSON,
        "CVE-2025-57052",
        ("CVE-2025-57052.patch",),
        Patched(
            _library("build"),
            # static, and specialised by the compiler: its symbol is decode_array_index_from_pointer.constprop.0
            frozenset({"decode_array_index_from_pointer"}),
            HostProgram("cjson.c", ("build/libcjson_utils.so", "build/libcjson.so")),
        ),
        quick=True,
    ),
    Case(
        TINYXML,
        "CVE-2021-42260",
        ("CVE-2021-42260.patch",),
        Patched(
            _library("."),
            # a member function; the line numbers of assertions move in six others
            frozenset({"_ZN16TiXmlParsingData5StampEPKc13TiXmlEncoding"}),
            HostProgram("tinyxml.cpp", ("libtinyxml.so.2.6.2",)),
        ),
        quick=True,
    ),
    Case(
        MEMCACHED,
        "CVE-2026-47783",
        ("0008-CVE-2026-47783-CVE-2026-47784.patch",),
        # a callback whose address stands in a static table; threads
        Patched(daemons.Memcached, frozenset({"sasl_server_userdb_checkpass"})),
        quick=True,
    ),
    Case(
        DNSMASQ,
        "CVE-2026-4893",
        ("CVE-2026-4893.patch",),
        Patched(daemons.Dnsmasq, frozenset({"process_reply"})),
        quick=True,
    ),
    Case(
        DNSMASQ,
        "CVE-2026-2291",
        ("CVE-2026-2291.patch",),
        # one small function differs, by a sizeof; only the types tell that smaller objects are about
        Refused(frozenset({"MF111"}), frozenset({"bigname"})),
        quick=True,
    ),
    Case(
        NGINX,
        "CVE-2026-42945",
        ("CVE-2026-42945.patch",),
        # reached only through pointers in compiled scripts on the heap
        Patched(daemons.NginxRewrite, frozenset({"ngx_http_script_regex_end_code"})),
    ),
    Case(
        NGINX,
        "CVE-2026-28753",
        ("CVE-2026-28753.patch",),
        # uses file-local data of the running process, and a new static function
        Patched(daemons.NginxMail, frozenset({"ngx_mail_smtp_resolve_addr_handler"})),
    ),
    Case(
        REDIS,
        "CVE-2024-51741",
        ("0002-Fix-Read-Write-key-pattern-selector-CVE-2024-51741-1.patch",),
        Patched(daemons.RedisSelector, frozenset({"ACLSetSelector"})),
    ),
    Case(
        REDIS,
        "CVE-2025-21605",
        ("0001-Limiting-output-buffer-for-unauthenticated-client-CV.patch",),
        Patched(daemons.RedisBuffer, frozenset({"checkClientOutputBufferLimits"})),
    ),
    Case(
        REDIS,
        "CVE-2025-67733",
        ("CVE-2025-67733.patch",),
        # new global functions that functions of three other objects call; line numbers alone move in 46 functions
        Patched(
            daemons.RedisReplies,
            frozenset(
                {
                    "functionListCommand",
                    "RM_ReplyWithSimpleString",
                    "addReplyStatusFormat",
                    "luaReplyToRedisReply",
                    "luaCallFunction",
                }
            ),
            doubtful=frozenset({"writeToClient"}),
        ),
    ),
    Case(
        HAPROXY,
        "CVE-2025-11230",
        ("0001-BUG-CRITICAL-mjson-fix-possible-DoS-when-parsing-num.patch",),
        # floating-point constants go along; mjson_print_dbl has the same ones under other labels, and stays
        Patched(daemons.Haproxy, frozenset({"mystrtod"})),
    ),
    Case(
        LIBXML2,
        "CVE-2023-29469",
        ("CVE-2023-29469-Hashing-of-empty-dict-strings-isn-t-d.patch",),
        # a jump table goes along
        Patched(
            _library(".libs"),
            frozenset({"xmlDictComputeFastKey"}),
            HostProgram("libxml2.c", (".libs/libxml2.so",), "include"),
        ),
    ),
    Case(
        LIBXML2,
        "CVE-2026-0989",
        ("CVE-2026-0989.patch",),
        # a member is added in a hole of the struct: its size stays
        Refused(frozenset({"MF111"}), frozenset({"_xmlRelaxNGParserCtxt"})),
    ),
    Case(
        MOSQUITTO,
        "CVE-2024-8376",
        (
            "CVE-2024-8376-1of3.patch",
            "CVE-2024-8376-2of3.patch",
            "CVE-2024-8376-3of3.patch",
            "0015-Fix-QoS-1-QoS-2-publish-incorrectly-returning-no-sub.patch",
        ),
        # the type of the global that holds all state of the broker, and two signatures
        Refused(frozenset({"MF111", "MF112"}), frozenset({"mosquitto_db", "sub__add", "sub__remove"})),
    ),
    Case(
        MOSQUITTO,
        "CVE-2023-28366",
        (
            "CVE-2023-28366.patch",
            "CVE-2023-28366-regression.patch",
            "0018-Further-fix-for-CVE-2023-28366.patch",
        ),
        # an out parameter points to another type: the linker cannot see it
        Refused(frozenset({"MF112"}), frozenset({"db__message_store_find"})),
    ),
)
