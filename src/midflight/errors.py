"""The errors of Midflight: each says what happened, to what, and what to do next, in one line.

This module is the one floor under all rooms: every other package may import it, and it imports nothing.
"""

from __future__ import annotations


class MidflightError(Exception):
    """Base of every error that a user may see; ``str()`` is the one line that is shown.

    ``exit_status`` is the exit status of the command line (see docs/reference): 1 a process failed,
    2 bad usage or bad input, 3 refused by the forge.
    """

    exit_status = 1


class InputError(MidflightError):
    """What the user gave (a file, an option, a key) cannot be used."""

    exit_status = 2


class ImageError(InputError):
    """A binary is malformed, truncated or of a kind that is not supported."""


class PatchFileError(InputError):
    """A hotpatch file is malformed, altered, unsigned, too large or of a future version."""


class ForgeError(InputError):
    """The forge could not do its work (a build failed, a tool is missing). Not a refusal."""


class Refused(MidflightError):
    """The forge refuses a change that cannot be hotpatched safely; findings say why."""

    exit_status = 3


class ProcessError(MidflightError):
    """A live process could not be read, stopped or changed."""


class ProcessGone(ProcessError):
    """The process ended (or became another program) while we worked on it."""


class EngineError(MidflightError):
    """A transaction was not carried out; the process runs the bytes it ran before."""
