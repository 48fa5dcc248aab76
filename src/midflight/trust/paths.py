"""Which names content may have in a repository: those that mean one file below one folder, on every system."""

from __future__ import annotations

import re

from midflight.patch.fields import FieldError, show

MAX_PATH = 200

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~-]{0,127}(?<!\.)")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that Windows opens as devices, in every folder (Naming Files, Paths, and Namespaces)."""


def target_path(value: object) -> str:
    """A check: the path of a TUF target, like ``nginx/fix-1.hotpatch``.

    Names begin with a letter, digit or underscore: so none is ``.`` or ``..``, absolute, hidden or an option, and none
    has a character that a shell, a URL or Windows reads as something else.
    """
    if type(value) is not str:
        raise FieldError(f"must be a path, is {show(value)}")
    names = value.split("/")
    if len(value) > MAX_PATH or len(names) > 8:
        raise FieldError(f"must be a path of at most {MAX_PATH} characters and 8 names")
    for name in names:
        if not _NAME.fullmatch(name) or _DEVICES.fullmatch(name):
            raise FieldError(f"must be a path of plain names, like nginx/fix-1.hotpatch; is {show(value)}")
    return value
