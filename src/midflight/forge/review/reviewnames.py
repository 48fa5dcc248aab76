"""What the names of functions say: who allocates and frees, who locks, who hashes and orders.

Names are all there is to go by, where a library's source is not at hand. They are taken apart into words (of
snake_case, camelCase, and mangled C++), so that ``clock`` is no lock and ``freeze`` frees nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PIECE = re.compile(r"(?:St|[A-Z]\w?_|[CD]\d)?(\d+)")
_OPERATORS = {"_Znw": "new", "_Zna": "new", "_Zdl": "delete", "_Zda": "delete"}

_ALLOCATES = re.compile(
    r".*(?:alloc|alloca|dup|strdup|strndup)$|^(?:reallocarray|asprintf|vasprintf|memalign|mmap|munmap)$"
)
_FREES = re.compile(
    r"^free(?!ze|zing|dom|bsd|type|form|ly|scale|d$)|.*[a-z]free$|^(?:dealloc|dealloc.*|destroy|delete)$"
)
_COUNTS = frozenset({"unref", "incref", "decref", "addref", "refcount", "retain"})
_LAST = frozenset({"new", "ref", "release", "create", "dispose", "clone"})
_NOT_OWNING = frozenset({"dup2", "dup3"})

_LOCKS = frozenset(
    {"lock", "trylock", "rdlock", "wrlock", "timedlock", "spinlock", "acquire", "flock", "lockf", "futex"}
)
_UNLOCKS = frozenset({"unlock", "spinunlock", "rdunlock", "wrunlock"})
_LOCK_NOUNS = frozenset({"lock", "mutex", "rwlock", "spin", "spinlock", "sem", "semaphore", "mtx", "latch"})

_HASHES = re.compile(
    r".*hash(?:er|ing|code|key|val|value|fn|func)?\d*$|^(?:crc|crc32|fnv|murmur\w*|siphash|djb2?|jenkins)$"
)
_ORDERS = re.compile(
    r"^(?:cmp|compare|comparator|collate|collation|order|ordering|sort|qsort|sorter|seed)$|.*[a-z]cmp$"
)
_KEY_MAKERS = frozenset(
    {"compute", "calc", "calculate", "make", "gen", "generate", "derive", "fast", "quick", "get", "to"}
)
_PLAIN_COMPARISONS = re.compile(
    r"^(?:__)?(?:(?:str|wcs|mem|wmem)n?(?:case)?cmp|str(?:n)?casecmp|strcoll|bcmp|g_str(?:cmp0|_equal)|g_ascii_strn?casecmp)"
)
_TAKES_CALLBACK = frozenset({"qsort", "bsearch", "lsearch", "lfind", "tsearch", "tfind", "tdelete", "hsearch", "sort"})


@lru_cache(maxsize=4096)
def words(name: str) -> tuple[str, ...]:
    """The words of an identifier, in lower case: ``xmlDictComputeFastKey`` is xml dict compute fast key."""
    plain = name.partition("@")[0]
    if plain.startswith("_Z"):
        for prefix, operator in _OPERATORS.items():
            if plain.startswith(prefix):
                return (operator,)
        plain = "_".join(_mangled(plain))
    plain = re.sub(r"\.(?:part|isra|constprop|cold|lto_priv)\b.*", "", plain)
    return tuple(word.lower() for word in _WORD.findall(plain))


def _mangled(name: str) -> list[str]:
    """The identifiers of the nested name at the beginning of a mangled one (Itanium C++ ABI 5.1.3)."""
    found = []
    at = re.match(r"_ZNK?|_Z", name)
    position = at.end() if at else 0
    while number := _PIECE.match(name, position):
        start = number.end()
        position = start + int(number[1])
        found.append(name[start:position])
        if not name.startswith(("_ZN", "_ZNK")):
            break
    return found


def owns(name: str) -> bool:
    """Whether a call of this function says who owns memory: allocation, free, a count of references."""
    parts = words(name)
    if not parts or name in _NOT_OWNING or locks(name) or unlocks(name):
        return False
    if name.startswith("__cxa_"):
        return False  # the compiler's own, for an exception in flight (Itanium C++ ABI, exception handling, 2.4)
    if any(_ALLOCATES.match(w) or _FREES.match(w) or w in _COUNTS for w in parts):
        return True
    joined = "".join(parts)
    return parts[-1] in _LAST or joined.endswith(("refcount", "sdsnewlen", "newlen", "newobj"))


def locks(name: str) -> bool:
    """Whether a call of this function takes a lock (or tries to)."""
    parts = set(words(name))
    if parts & _UNLOCKS:
        return False
    return (bool(parts & _LOCKS) and not _makes(parts)) or (
        "sem" in parts and bool(parts & {"wait", "trywait", "timedwait"})
    )


def unlocks(name: str) -> bool:
    """Whether a call of this function gives a lock back."""
    parts = set(words(name))
    return bool(parts & _UNLOCKS) or (
        bool(parts & _LOCK_NOUNS) and bool(parts & {"release", "post", "leave"}) and not _makes(parts)
    )


def _makes(parts: set[str]) -> bool:
    return bool(parts & {"init", "destroy", "create", "new", "free", "alloc", "delete"})


def orders(name: str) -> bool:
    """Whether a function of this name computes a hash, a key or an order."""
    parts = words(name)
    if any(_HASHES.match(word) or _ORDERS.match(word) for word in parts):
        return True
    return bool(parts) and parts[-1] in ("key", "keys") and bool(_KEY_MAKERS & set(parts[:-1]))


def calls_order(name: str) -> bool:
    """As :func:`orders`, for a function that is called: comparing strings and bytes for themselves is no order."""
    return orders(name) and not any(map(_PLAIN_COMPARISONS.match, (name, *words(name))))


def takes_callback(name: str) -> bool:
    """Whether a function takes a comparison or hash function that it goes on using."""
    parts = words(name)
    if not parts:
        return False
    makes = bool({"new", "create", "init", "sort"} & set(parts))
    table = any(_HASHES.match(word) or word in ("tree", "rbtree", "dict", "map", "heap", "htable") for word in parts)
    return name in _TAKES_CALLBACK or (makes and table) or parts[-1] in ("qsort", "bsearch", "sort")
