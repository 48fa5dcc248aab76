"""The packages of the corpus, a file each: how it is built and started, how its holes are seen, and its cases.

A case names the Debian patches that are the fix. The vulnerable source is Debian's own without them; the build command
is what an administrator would use, with the parts left out that the hole does not need. A probe looks at what the
process does, and never at a clock: where the hole is time, processor time is counted.
"""

from __future__ import annotations

from tests.corpus.model import Case
from tests.corpus.packages import (
    cares,
    cjson,
    curl,
    dnsmasq,
    expat,
    glib,
    haproxy,
    jq,
    libarchive,
    libcue,
    libde265,
    libevent,
    libtasn1,
    libwebp,
    libxml2,
    lua,
    memcached,
    minidlna,
    mosquitto,
    nghttp2,
    nginx,
    redis,
    sqlite,
    tiff,
    tinyproxy,
    tinyxml,
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

CASES: tuple[Case, ...] = tuple(case for module in _ALL for case in module.CASES)
