"""The author's hooks: a C file with functions that run in the target before and after apply and revert.

It is compiled as the patched files are (include folders, definitions, code model), so it may use their headers.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from midflight.errors import ForgeError, InputError
from midflight.forge.capture.commandline import Command
from midflight.forge.model import Build, CompiledObject, ObjectCode
from midflight.forge.objects import read_object
from midflight.patch.manifest import HookName

PREFIX = "midflight_"
_WITH_VALUE = frozenset({"-o", "-MF", "-MT", "-MQ"})
_ALONE = frozenset({"-c", "-M", "-MM", "-MD", "-MMD", "-MP", "-MG", "-pipe"})


def compile_hooks(file: Path, like: CompiledObject, output: Path) -> ObjectCode:
    """Compile a C file of hooks as another object was compiled.

    Raises:
        InputError: the file does not exist.
        ForgeError: it does not compile; the message has what the compiler said.
    """
    if not file.is_file():
        raise InputError(f"the file of hooks {file} does not exist")
    file = file.resolve()
    command = [*_options(like), "-ffunction-sections", "-fdata-sections", "-c", str(file), "-o", str(output)]
    # Neither the place of the file nor the time may stand in the object.
    command.insert(1, f"-ffile-prefix-map={file.parent}=.")
    done = subprocess.run(command, cwd=like.directory, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise ForgeError(f"the hooks {file.name} do not compile; the compiler said:\n{said}")
    return read_object(output, Path(file.name))


def _options(like: CompiledObject) -> list[str]:
    tool, *arguments = like.arguments
    sources = {index for index, _, _ in Command(list(arguments)).sources}
    kept = [tool]
    skip = False
    for index, argument in enumerate(arguments):
        if skip:
            skip = False
        elif argument in _WITH_VALUE:
            skip = True
        elif index in sources or argument in _ALONE or argument.startswith(("-Wp,-M", "-o", "-flto", "-Werror")):
            continue
        else:
            kept.append(argument)
    return kept


def hook_functions(code: ObjectCode) -> Mapping[HookName, str]:
    """The hooks that an object defines, by name; those that begin with midflight_ and are none are returned by
    :func:`strangers`."""
    found: dict[HookName, str] = {}
    for name in get_args(HookName):
        key = PREFIX + name
        atom = code.atoms.get(key)
        if atom is not None and atom.kind == "function" and atom.binding == "global":
            found[name] = key
    return found


def strangers(code: ObjectCode) -> list[str]:
    """Functions that look like hooks and are none (misspelt, or static)."""
    known = set(hook_functions(code).values())
    return [a.name for k, a in code.atoms.items() if a.kind == "function" and k.startswith(PREFIX) and k not in known]


def example(build: Build, changed: tuple[Path, ...]) -> CompiledObject:
    """The object after whose command line hooks are compiled: the first changed one from C, else any from C.

    Raises:
        InputError: nothing in the image was compiled from C.
    """
    for path in (*changed, *build.inputs):
        made = build.objects.get(path)
        if made is not None and made.source.suffix == ".c" and made.arguments:
            return made
    raise InputError("hooks are written in C, and nothing in the image was compiled from C; leave --hooks out")
