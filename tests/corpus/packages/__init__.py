"""The packages of the corpus, a file each: how it is built and started, how its holes are seen, and its cases.

A case names the Debian patches that are the fix. The vulnerable source is Debian's own without them; the build command
is what an administrator would use, with the parts left out that the hole does not need. A probe looks at what the
process does, and never at a clock: where the hole is time, processor time is counted.
"""

from __future__ import annotations

from tests.corpus.model import AnyCase
from tests.corpus.packages import (
    aprutil,
    cares,
    cjson,
    curl,
    dnsmasq,
    expat,
    glib,
    glibc,
    haproxy,
    jq,
    libarchive,
    libarchive_zip,
    libcap,
    libcue,
    libde265,
    libebml,
    libevent,
    libgd,
    libmodbus,
    libtasn1,
    libwebp,
    libxml2,
    libxml2_xpath,
    libxslt,
    lua,
    memcached,
    minidlna,
    mosquitto,
    nghttp2,
    nginx,
    openssl,
    redis,
    redis_restore,
    sqlite,
    sqlite3_session,
    tiff,
    tinyproxy,
    tinyxml,
    unbound,
    xz,
    zlib,
    znc,
)

_ALL = (
    cjson,
    tinyxml,
    libcue,
    lua,
    libtasn1,
    expat,
    tinyproxy,
    memcached,
    dnsmasq,
    cares,
    libde265,
    jq,
    nghttp2,
    mosquitto,
    libevent,
    tiff,
    minidlna,
    libwebp,
    libxml2,
    libarchive,
    nginx,
    redis,
    haproxy,
    curl,
    sqlite,
    glib,
)

_FURTHER = (
    zlib,
    xz,
    libarchive_zip,
    aprutil,
    libgd,
    libxml2_xpath,
    libcap,
    libebml,
    libmodbus,
    libxslt,
    sqlite3_session,
    redis_restore,
    unbound,
    znc,
    openssl,
    glibc,
)

CASES: tuple[AnyCase, ...] = tuple(case for module in (*_ALL, *_FURTHER) for case in module.CASES)
