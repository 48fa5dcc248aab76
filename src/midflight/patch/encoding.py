"""The manifest as JSON and back. What is decoded here is complete and of the right types and ranges, field by field;
what fields must be to each other is checked in :mod:`midflight.patch.validate`.

The tables below follow the dataclasses of :mod:`midflight.patch.manifest` field by field, and the published schemas
``schema/manifest-1.json`` to ``-3.json`` follow both (tests hold them together). JSON has every field, always;
optional ones are null; schema 2 is schema 1 with the field ``review``; schema 3 is for PE images, and its ``review``
may be null. Byte strings are lower-case hex; ``hooks`` is an object from hook name to payload offset.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Literal, get_args

from midflight.patch import strictjson
from midflight.patch.fields import (
    Check,
    FieldError,
    boolean,
    choice,
    hex_bytes,
    integer,
    many,
    optional,
    pattern,
    record,
    show,
    text,
)
from midflight.patch.manifest import (
    PE_SCHEMA,
    REVIEWED_SCHEMA,
    SCHEMA_VERSION,
    CodeRange,
    Entry,
    EntryKind,
    Function,
    HookName,
    Import,
    Manifest,
    Override,
    PayloadSymbol,
    Policy,
    Relocation,
    RelocationForm,
    RelocationKind,
    Review,
    Segment,
    SegmentKind,
    Target,
    Unwind,
)

MAX_MANIFEST = 8 << 20
"""Largest manifest, in bytes of JSON."""
MAX_PAYLOAD = 16 << 20
"""Largest payload member, in bytes."""
MAX_MEMORY = 64 << 20
"""Most memory that one target's payload may take in a process, in bytes."""
MAX_VADDR = (1 << 47) - 1
"""Highest address of a user process (System V AMD64 ABI 3.3.2)."""
MAX_TARGETS = 16

_vaddr = integer(0, MAX_VADDR)
_offset = integer(0, MAX_MEMORY)
_size = integer(1, MAX_MEMORY)
_sha256 = pattern(r"[0-9a-f]{64}", "a sha256 in lower-case hex")
_symbol = text(1, 8192)
_prose = text(1, 10_000, lines=True)
_timestamp = pattern(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", "a time in UTC like 2026-01-31T12:00:00Z"
)
_word = choice(("func", "object"))
_HOOKS: tuple[HookName, ...] = get_args(HookName)
Format = Literal["elf", "pe"]
_ELF_ENTRIES: tuple[EntryKind, ...] = ("near", "short")
_ELF_FORMS: tuple[RelocationForm, ...] = ("abs64", "abs32", "abs32s", "pc32")


def _hooks(value: object) -> tuple[tuple[HookName, int], ...]:
    if type(value) is not dict:
        raise FieldError("must be an object")
    decoded: list[tuple[HookName, int]] = []
    for name, offset in value.items():
        if name not in _HOOKS:
            raise FieldError(f"has an unknown hook {show(name)}; there are {', '.join(_HOOKS)}")
        try:
            decoded.append((name, _offset(offset)))
        except FieldError as error:
            raise error.inside(f".{name}") from None
    return tuple(decoded)


def _moment(value: object) -> str:
    moment = _timestamp(value)
    # By hand: the datetime module would cost more to import than reading a whole manifest does.
    year, month, day = int(moment[:4]), int(moment[5:7]), int(moment[8:10])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = (0, 31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    date_exists = year > 0 and 1 <= month <= 12 and 1 <= day <= days[month]
    if not date_exists or moment[11:13] > "23" or moment[14:16] > "59" or moment[17:19] > "59":
        raise FieldError(f"must be a time that exists, is {show(value)}")
    return moment


def reviewer_name(value: object) -> str:
    """A person: name and address, as version control systems write them.

    Raises:
        FieldError: it is none.
    """
    return _person(_one_line(value))


_one_line = text(1, 200)
_person = pattern(r"[^<>]*[^<>\s] <[^<>@\s]+@[^<>@\s]+>", "a name and an address like Jo Doe <jo@example.org>")

_segment = record(
    Segment, kind=choice(get_args(SegmentKind)), offset=_offset, size=_size, file_offset=_offset, file_size=_offset
)
_range = record(CodeRange, vaddr=_vaddr, size=_size, sha256=_sha256)
_import = record(Import, name=_symbol, version=optional(text(1, 1000)), library=optional(text(1, 1000)), type=_word)
_payload_symbol = record(PayloadSymbol, name=_symbol, offset=_offset, size=_offset, type=_word)
_unwind = record(Unwind, offset=_offset, size=_size, throws=boolean)
_override = record(
    Override,
    code=pattern(r"MF[0-9]{3}", "the code of a refusal like MF101"),
    file=text(0, 4096),
    symbol=text(0, 8192),
    finding=_prose,
    reason=_prose,
)


def _target(format_: Format) -> Check:
    """What a target of an image of this format may be."""
    elf = format_ == "elf"
    entry = record(
        Entry,
        kind=choice(_ELF_ENTRIES if elf else get_args(EntryKind)),
        vaddr=_vaddr,
        before=hex_bytes(5, 2),
        pad_vaddr=optional(_vaddr),
        pad_before=optional(hex_bytes(5)),
    )
    function = record(
        Function, name=_symbol, ranges=many(_range, 1, 1000), entry=entry, new_offset=_offset, new_size=_size
    )
    relocation = record(
        Relocation,
        offset=_offset,
        kind=choice(get_args(RelocationKind)),
        form=choice(_ELF_FORMS if elf else get_args(RelocationForm)),
        target=_vaddr,
        addend=integer(-(1 << 63), (1 << 63) - 1),
        branch=boolean,
    )
    build_id = (
        pattern(r"(?:[0-9a-f]{2}){8,64}", "a build-id of 8 to 64 bytes in lower-case hex")
        if elf
        else pattern(r"pe-[0-9a-f]{8}-[0-9a-f]{8}", "an identity like pe-0001f00d-662a7c63")
    )
    member = r"payload/[0-9a-f]{16,128}\.bin" if elf else r"payload/pe-[0-9a-f]{8}-[0-9a-f]{8}\.bin"
    return record(
        Target,
        image_name=text(1, 255),
        build_id=build_id,
        machine=choice(("x86_64",)),
        payload=pattern(member, "the name of a payload member"),
        payload_sha256=_sha256,
        payload_size=integer(1, MAX_PAYLOAD),
        segments=many(_segment, 1, 3),
        functions=many(function, 0, 10_000),
        relocations=many(relocation),
        imports=many(_import, 0, 100_000),
        symbols=many(_payload_symbol, 0, 100_000),
        unwind=optional(_unwind),
        policy=choice(get_args(Policy)),
        policy_reason=optional(_prose),
        hooks=_hooks,
        overrides=many(_override, 0, 1000),
        escapes=boolean,
    )


_review = record(Review, reviewer=reviewer_name, digest=_sha256)
_schema = integer(SCHEMA_VERSION, PE_SCHEMA)
_manifest_fields: dict[str, Check] = {
    "schema": _schema,
    "name": pattern(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}", "a name of letters, digits and . _ + ~ -"),
    "sequence": integer(0, (1 << 31) - 1),
    "description": text(0, 10_000, lines=True),
    "cves": many(pattern(r"CVE-[0-9]{4}-[0-9]{4,12}", "a CVE number like CVE-2026-12345"), 0, 1000),
    "created": _moment,
    "builder": text(1, 200),
    "compiler": text(1, 1000),
    "fix_sha256": _sha256,
    "targets": many(_target("elf"), 1, MAX_TARGETS),
}
_pe_fields: dict[str, Check] = _manifest_fields | {
    "targets": many(_target("pe"), 1, MAX_TARGETS),
    "review": optional(_review),
}
_BY_SCHEMA: dict[int, Callable[[object], Manifest]] = {
    SCHEMA_VERSION: record(Manifest, **_manifest_fields),
    REVIEWED_SCHEMA: record(Manifest, **_manifest_fields, review=_review),
    PE_SCHEMA: record(Manifest, **_pe_fields),
}


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest from JSON; only its own fields are checked, each for itself.

    Raises:
        FieldError: it is too large, not JSON, or some field is missing, unknown or not allowed.
    """
    if len(data) > MAX_MANIFEST:
        raise FieldError(f"has {len(data)} bytes; at most {MAX_MANIFEST} are allowed")
    try:
        value = strictjson.loads(data)
    except strictjson.StrictJSONError as error:
        raise FieldError(str(error)) from None
    if type(value) is not dict or "schema" not in value:
        return _BY_SCHEMA[SCHEMA_VERSION](value)
    try:
        schema = _schema(value["schema"])
    except FieldError as error:
        raise error.inside(".schema") from None
    return _BY_SCHEMA[schema](value)


def encode_manifest(manifest: Manifest) -> bytes:
    """A manifest as JSON: ASCII, one line, fields in the order of the dataclasses."""
    return json.dumps(plain(manifest), separators=(",", ":")).encode() + b"\n"


def plain(value: object) -> object:
    """A manifest, or a part of it, as JSON types."""
    if is_dataclass(value) and not isinstance(value, type):
        result: dict[str, object] = {}
        for field in dataclass_fields(value):
            content = getattr(value, field.name)
            if field.name == "review" and content is None and getattr(value, "schema", 0) != PE_SCHEMA:
                continue
            result[field.name] = dict(content) if field.name == "hooks" else plain(content)
        return result
    if isinstance(value, tuple | list):
        return [plain(element) for element in value]
    if isinstance(value, bytes):
        return value.hex()
    return value
