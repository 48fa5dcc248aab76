"""Does a piece of work in a forked process of its own, which goes on when we are killed.

A thread that is made to do a call for us restores itself when its tracer dies (docs/adr/0002), unless a seccomp filter
forbids the calls that this takes: the filter is suspended only while its tracer lives. For such a target the tracer is
therefore a child of ours, in a session of its own: whoever kills us does not reach it, and it ends by itself soon
after.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

from midflight.errors import MidflightError, ProcessError
from midflight.process import faults

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """What ``work`` returns; the MidflightError that it raises is raised here.

    Raises:
        ProcessError: the child ended without an answer.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(work, writing)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
    finally:
        os.waitpid(child, 0)
    if not said:
        raise ProcessError("our helper in a confined process ended without an answer (run `midflight check`)")
    good, value = pickle.loads(said)
    if not good:
        raise value
    result: T = value
    return result


def _answer(work: Callable[[], T], writing: int) -> None:
    """Never returns."""
    try:
        os.setsid()
        faults.disarm()
        try:
            said = pickle.dumps((True, work()))
        except MidflightError as error:
            said = pickle.dumps((False, error))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(said)
    finally:
        # Also after an error of our own: no handler and no buffer of the parent's may run here.
        os._exit(0)
