"""The container: one encoding, readable by ordinary tools, and nothing else accepted."""

from __future__ import annotations

import io
import stat
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.patch.container import MAX_FILE, MAX_MEMBERS, ContainerError, pack, unpack
from tests.patch.examples import put

MEMBERS = {"statement.dsse.json": b"{}\n", "manifest.json": b"{1}", "payload/abcd.bin": bytes(100)}
names = st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8}(\.[a-z]{1,4})?)?", fullmatch=True)


@given(st.dictionaries(names, st.binary(max_size=200), min_size=1, max_size=8))
def test_members_come_back_in_their_order(members: dict[str, bytes]) -> None:
    packed = pack(members)
    assert list(unpack(packed).items()) == list(members.items())
    assert pack(members) == packed


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_cause_another_error(data: bytes, looks_like_a_member: bool) -> None:
    whole = b"PK\x03\x04" + data if looks_like_a_member else data
    with pytest.raises(ContainerError):
        unpack(whole)


def test_ordinary_tools_read_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a.hotpatch", pack(MEMBERS))
    assert subprocess.run(["unzip", "-tq", path], capture_output=True, text=True).returncode == 0
    listed = subprocess.run(["unzip", "-Z1", path], capture_output=True, text=True, check=True).stdout.split()
    assert listed == list(MEMBERS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == MEMBERS
        assert all(stat.S_IMODE(i.external_attr >> 16) == 0o644 for i in archive.infolist())


def test_another_zip_writer_is_refused() -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, data in MEMBERS.items():
                archive.writestr(name, data)
        with pytest.raises(ContainerError):
            unpack(buffer.getvalue())


def test_a_zip_bomb_is_refused_without_inflating() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("statement.dsse.json", bytes(50 << 20))
    with pytest.raises(ContainerError, match="compressed"):
        unpack(buffer.getvalue())


def test_every_truncation_is_refused() -> None:
    packed = pack(MEMBERS)
    for size in range(len(packed)):
        with pytest.raises(ContainerError):
            unpack(packed[:size])


def test_every_single_changed_bit_of_a_header_is_refused() -> None:
    packed = pack(MEMBERS)
    for position in range(len(packed)):
        for bit in range(8):
            changed = bytearray(packed)
            changed[position] ^= 1 << bit
            with pytest.raises(ContainerError):
                unpack(bytes(changed))


@pytest.mark.parametrize("extra", [b"\0", b"PK\x05\x06", pack(MEMBERS)])
def test_something_behind_the_end_is_refused(extra: bytes) -> None:
    with pytest.raises(ContainerError, match="at its end"):
        unpack(pack(MEMBERS) + extra)


def test_something_before_the_start_is_refused() -> None:
    with pytest.raises(ContainerError, match="not a hotpatch file"):
        unpack(b"#!/bin/sh\n" + pack(MEMBERS))


def test_something_between_members_is_refused() -> None:
    first = {"statement.dsse.json": b"{}\n"}
    local_size = 30 + len("statement.dsse.json") + 3
    packed = pack(MEMBERS)
    assert packed[:local_size] == pack(first)[:local_size]
    with pytest.raises(ContainerError):
        unpack(packed[:local_size] + b"hidden" + packed[local_size:])


def test_a_comment_is_refused() -> None:
    packed = bytearray(pack(MEMBERS))
    packed[-2:] = struct.pack("<H", 5)
    with pytest.raises(ContainerError):
        unpack(bytes(packed) + b"hello")


def test_duplicate_members_are_refused() -> None:
    with pytest.raises(ContainerError, match="twice"):
        unpack(_two_members("manifest.json", "manifest.json"))


@pytest.mark.parametrize(
    "name",
    ["../etc/passwd", "/etc/passwd", "a/../b", "a//b", "a/", ".hidden", "A", "a b", "a\\b", "a\x1b[31m", "é", ""],
)
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ContainerError, match="name"):
        unpack(_two_members("statement.dsse.json", name))
    with pytest.raises(ContainerError, match="name"):
        pack({name: b""})


def test_a_symbolic_link_is_refused() -> None:
    packed = bytearray(pack(MEMBERS))
    position = packed.index(b"PK\x01\x02") + 38
    packed[position : position + 4] = struct.pack("<I", (stat.S_IFLNK | 0o777) << 16)
    with pytest.raises(ContainerError, match="directory"):
        unpack(bytes(packed))


def test_overlapping_members_are_refused() -> None:
    packed = bytearray(pack(MEMBERS))
    second = packed.index(b"PK\x01\x02", packed.index(b"PK\x01\x02") + 4)
    packed[second + 42 : second + 46] = struct.pack("<I", 0)
    with pytest.raises(ContainerError, match="directory"):
        unpack(bytes(packed))


def test_zip64_is_refused() -> None:
    packed = bytearray(pack(MEMBERS))
    packed[18:26] = b"\xff" * 8
    with pytest.raises(ContainerError, match="ZIP64"):
        unpack(bytes(packed))


def test_an_encrypted_member_is_refused() -> None:
    packed = bytearray(pack(MEMBERS))
    packed[6] |= 1
    with pytest.raises(ContainerError, match="encrypted"):
        unpack(bytes(packed))


def test_limits() -> None:
    many = {f"a{number}": b"" for number in range(MAX_MEMBERS)}
    assert unpack(pack(many)) == many
    with pytest.raises(ContainerError, match="members"):
        pack({**many, "one-more": b""})
    with pytest.raises(ContainerError, match="bytes"):
        pack({"big": bytes(MAX_FILE)})
    with pytest.raises(ContainerError, match="larger"):
        unpack(bytes(MAX_FILE + 1))


def _two_members(first: str, second: str) -> bytes:
    """Two members with whatever names, everything else as it should be."""
    placeholder = "z" * len(second.encode())
    if not placeholder:
        packed = bytearray(pack({first: b"x"}))
        packed[26:28] = b"\0\0"
        del packed[30 : 30 + len(first)]
        return bytes(packed)
    return pack({first: b"x", placeholder: b"y"}).replace(placeholder.encode(), second.encode())
