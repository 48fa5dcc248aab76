"""Owners and access control lists of Windows files, through ctypes (Microsoft's API reference: GetNamedSecurityInfo,
GetAce, ACCESS_MASK; [MS-DTYP] 2.4 for the well-known security identifiers). Loads on every system; works on Windows
alone.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_void_p, c_wchar_p
from functools import cache
from pathlib import Path
from typing import Any

ADMINISTRATORS, SYSTEM, OWNER_RIGHTS = "S-1-5-32-544", "S-1-5-18", "S-1-3-4"
TRUSTED_INSTALLER = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
CLOSED = "D:P(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;OICI;FA;;;OW)"
"""Administrators, the system and the owner alone, inherited by what is made inside (Security Descriptor Definition
Language)."""

_FILE_OBJECT, _OWNER, _DACL = 1, 0x1, 0x4
_ALLOWED, _DENIED = (0, 5, 9, 11), (1, 6, 10, 12)  # the plain kinds of ACE, with those for objects and with conditions
_INHERIT_ONLY = 0x08
# FILE_WRITE_DATA, FILE_APPEND_DATA, FILE_WRITE_EA, FILE_DELETE_CHILD, FILE_WRITE_ATTRIBUTES, DELETE, WRITE_DAC,
# WRITE_OWNER, GENERIC_ALL, GENERIC_WRITE
_CHANGING = 0x2 | 0x4 | 0x10 | 0x40 | 0x100 | 0x10000 | 0x40000 | 0x80000 | 0x10000000 | 0x40000000
_ALREADY_EXISTS = 183
_TOKEN_QUERY, _TOKEN_USER = 0x8, 1
_KNOWN = {"S-1-1-0": "everybody", "S-1-5-11": "every user who is logged in", "S-1-5-32-545": "every user"}


class _Ace(ctypes.Structure):
    """ACE_HEADER with the mask that follows it in the kinds that we look at."""

    _fields_ = [("type", c_uint8), ("flags", c_uint8), ("size", c_uint16), ("mask", c_uint32)]


class _Acl(ctypes.Structure):
    """ACL."""

    _fields_ = [("revision", c_uint8), ("zero", c_uint8), ("size", c_uint16), ("count", c_uint16), ("pad", c_uint16)]


@cache
def _security() -> Any:
    advapi: Any = getattr(ctypes, "WinDLL")("advapi32", use_last_error=True)  # noqa: B009 (unknown on other systems)
    pointer = ctypes.POINTER(c_void_p)
    for name, result, arguments in (
        ("GetNamedSecurityInfoW", c_uint32, (c_wchar_p, c_uint32, c_uint32, *(pointer,) * 5)),
        ("GetAce", c_int32, (c_void_p, c_uint32, pointer)),
        ("ConvertSidToStringSidW", c_int32, (c_void_p, pointer)),
        ("ConvertStringSecurityDescriptorToSecurityDescriptorW", c_int32, (c_wchar_p, c_uint32, pointer, c_void_p)),
        ("OpenProcessToken", c_int32, (c_void_p, c_uint32, pointer)),
        ("GetTokenInformation", c_int32, (c_void_p, c_uint32, c_void_p, c_uint32, c_void_p)),
        ("SetFileSecurityW", c_int32, (c_wchar_p, c_uint32, c_void_p)),
    ):
        function = getattr(advapi, name)
        function.restype, function.argtypes = result, list(arguments)
    return advapi


@cache
def _kernel() -> Any:
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009
    kernel.LocalFree.argtypes = [c_void_p]
    kernel.CloseHandle.argtypes = [c_void_p]
    kernel.GetCurrentProcess.restype = c_void_p
    kernel.CreateDirectoryW.argtypes = [c_wchar_p, c_void_p]
    return kernel


def _failed(what: str, path: Path | str, number: int | None = None) -> OSError:
    number = getattr(ctypes, "get_last_error")() if number is None else number  # noqa: B009
    return OSError(number, what, str(path))


def _words(sid: int) -> str:
    """A security identifier as S-1-…"""
    text = c_void_p()
    if not _security().ConvertSidToStringSidW(sid, ctypes.byref(text)):
        raise _failed("an owner cannot be named", "")
    try:
        return ctypes.wstring_at(text.value or 0)
    finally:
        _kernel().LocalFree(text)


@cache
def this_user() -> str:
    """The security identifier of the user that we run as.

    Raises:
        OSError: it cannot be told.
    """
    token = c_void_p()
    if not _security().OpenProcessToken(_kernel().GetCurrentProcess(), _TOKEN_QUERY, ctypes.byref(token)):
        raise _failed("our own user cannot be told", "")
    try:
        room = ctypes.create_string_buffer(256)
        used = c_uint32()
        if not _security().GetTokenInformation(token, _TOKEN_USER, room, len(room), ctypes.byref(used)):
            raise _failed("our own user cannot be told", "")
        return _words(int.from_bytes(room.raw[:8], "little"))
    finally:
        _kernel().CloseHandle(token)


def changeable_by(path: Path) -> str | None:
    """Who else than administrators, the system and this user owns a file or folder or may change it; None: nobody.

    Raises:
        OSError: it is not there, or may not be looked at.
    """
    owner, acl, descriptor = c_void_p(), c_void_p(), c_void_p()
    result = _security().GetNamedSecurityInfoW(
        str(path), _FILE_OBJECT, _OWNER | _DACL, ctypes.byref(owner), None, ctypes.byref(acl), None,
        ctypes.byref(descriptor),
    )  # fmt: skip
    if result:
        raise _failed("who can change it cannot be told", path, result)
    try:
        trusted = {ADMINISTRATORS, SYSTEM, TRUSTED_INSTALLER, this_user()}
        who = _words(owner.value or 0)
        if who not in trusted:
            return f"its owner ({who})"
        if not acl.value:
            return "everybody (it has no access control list)"
        return _other_writer(acl.value, trusted | {OWNER_RIGHTS})
    finally:
        _kernel().LocalFree(descriptor)


def _other_writer(acl: int, trusted: set[str]) -> str | None:
    """The first entry of a list that lets anybody else change things. What is denied is not subtracted."""
    for index in range(_Acl.from_address(acl).count):
        at = c_void_p()
        if not _security().GetAce(acl, index, ctypes.byref(at)):
            raise _failed("an access control list cannot be read", "")
        ace = _Ace.from_address(at.value or 0)
        if ace.type in _DENIED or ace.flags & _INHERIT_ONLY or (ace.type in _ALLOWED and not ace.mask & _CHANGING):
            continue
        if ace.type != _ALLOWED[0]:
            return f"somebody (an entry of kind {ace.type} in its access control list)"
        who = _words((at.value or 0) + ctypes.sizeof(_Ace))
        if who not in trusted:
            return _KNOWN.get(who, who)
    return None


def _descriptor(text: str) -> c_void_p:
    found = c_void_p()
    convert = _security().ConvertStringSecurityDescriptorToSecurityDescriptorW
    if not convert(text, 1, ctypes.byref(found), None):
        raise _failed("the access rights cannot be set", text)
    return found


def make_folder(path: Path, administrators: bool) -> None:
    """Make a folder that administrators, the system and its owner alone can change, unless there is one. It belongs to
    this user, or to all ``administrators``: what one of them made, the service of the machine relies on.

    Raises:
        OSError: it cannot be made.
    """
    descriptor = _descriptor(("O:BA" if administrators else "") + CLOSED)
    try:
        attributes = (ctypes.c_uint64 * 3)(24, descriptor.value or 0, 0)  # SECURITY_ATTRIBUTES
        if not _kernel().CreateDirectoryW(str(path), ctypes.byref(attributes)):
            number = getattr(ctypes, "get_last_error")()  # noqa: B009
            if number != _ALREADY_EXISTS or not path.is_dir():
                raise _failed("the folder cannot be made", path, number)
    finally:
        _kernel().LocalFree(descriptor)


def give_rights(path: Path, text: str) -> None:
    """Set the access control list of a file or folder, in the Security Descriptor Definition Language.

    Raises:
        OSError: it cannot be set.
    """
    descriptor = _descriptor(text)
    try:
        if not _security().SetFileSecurityW(str(path), _DACL, descriptor):
            raise _failed("the access rights cannot be set", path)
    finally:
        _kernel().LocalFree(descriptor)
