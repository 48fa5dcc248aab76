"""Who can change a file or folder, on every system; and folders that others cannot change.

Whoever can write to the keys decides what code goes into processes; whoever can write to the run folder tells an
administrator's engine what to undo. So both are looked at before they are believed.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from midflight.machine import sids
from midflight.machine.places import is_administrator, machine_folder

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def changeable_by(path: Path) -> str | None:
    """Who else than this user and the administrators of the machine can change a file or folder, in words; None:
    nobody.

    Raises:
        OSError: it is not there, or may not be looked at.
    """
    if sys.platform == "win32":
        return sids.changeable_by(path)
    state = os.lstat(path)
    if stat.S_ISLNK(state.st_mode):
        return "whoever made that link" if state.st_uid not in (0, os.geteuid()) else changeable_by(path.resolve(True))
    if state.st_uid not in (0, os.geteuid()):
        return f"its owner, user {state.st_uid}"
    # With the sticky bit others can add to a folder, but not replace what is there.
    if state.st_mode & _OTHERS and not (stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX):
        return "its group" if state.st_mode & stat.S_IWGRP else "everybody"
    return None


def make_closed_folder(path: Path) -> None:
    """Make a folder that others cannot change, with its parents; one that is there must be such a folder.

    On Windows the folder of Midflight below %ProgramData%, where everybody can make folders, is looked at too.

    Raises:
        PermissionError: somebody else can change it: another user may have made it before us.
        OSError: it cannot be made.
    """
    if sys.platform == "win32":
        above = machine_folder()
        if path != above and path.is_relative_to(above):
            make_closed_folder(above)
        path.parent.mkdir(parents=True, exist_ok=True)
        sids.make_folder(path, is_administrator())
    else:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    other = changeable_by(path)
    if other is not None:
        raise PermissionError(13, f"{other} can change it", str(path))
