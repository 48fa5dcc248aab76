"""The compiler wrapper: runs in place of each compiler driver and linker of a build, and records what they make.

A folder of shims (see ``shims.py``) stands first on the PATH; each shim imports this module and calls :func:`main`. It
runs once for every compilation, so it starts the interpreter isolated (``-I -S -E``), imports almost nothing, and needs
nothing of the package: its files are copied into the folder of the shims. Hashes, regular expressions and archives are
for links alone.

Records are Python literals, one file a record, written under a temporary name and renamed, so that parallel builds need
no lock.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # as type checkers know it; importing typing would cost more than all the rest
if TYPE_CHECKING:
    from typing import NoReturn

    from midflight.forge.capture.commandline import SEPARATE, Command, expand, is_preprocessed_first, is_trial
elif __name__ == "wrapper":
    # It lies beside this file in the folder of the shims.
    from commandline import SEPARATE, Command, expand, is_preprocessed_first, is_trial

ADDED = ("-ffunction-sections", "-fdata-sections", "-g")


class Recorder:
    """The one who runs the real tool and writes down what came of it."""

    def __init__(self, base: str, kind: str, real: str, name: str) -> None:
        self.base = base
        self.kind = kind
        self.real = real
        # The hook for full paths (exechook.c) lets two slashes pass; it is loaded in this very process, too.
        self.program = "/" + real
        self.name = name
        self.phase = os.path.join(base, "phase")
        """A symbolic link to the folder of the build in progress; without it, nothing is recorded."""
        self.remembers = os.path.exists(os.path.join(base, "whole"))
        """Whether the build with the fix will be a whole one again, see reuse.py."""
        self.cwd = os.getcwd()
        self.count = 0
        self.environment = dict(os.environ)
        shims = os.path.join(base, "shims")
        path = self.environment.get("PATH", "").split(":")
        self.environment["PATH"] = ":".join(p for p in path if p != shims)
        preload = self.environment.pop("LD_PRELOAD", "").replace(":", " ").split()
        preload = [p for p in preload if not p.startswith(shims)]
        if preload:
            self.environment["LD_PRELOAD"] = ":".join(preload)

    def become(self, arguments: list[str]) -> NoReturn:
        """Be the real tool, with nothing recorded."""
        os.execve(self.program, [self.real, *arguments], self.environment)

    def run(self, arguments: list[str]) -> None:
        """Run the real tool; ends this process with its status if it failed."""
        pid = os.posix_spawn(self.program, [self.real, *arguments], self.environment)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            sys.stdout.flush()
            os._exit(128 + os.WTERMSIG(status))
        if status:
            os._exit(os.WEXITSTATUS(status))

    def fresh(self, suffix: str) -> str:
        """A path for a new file of this record, unique in the phase."""
        self.count += 1
        return os.path.join(self.phase, "files", f"{time.time_ns()}-{os.getpid()}-{self.count}{suffix}")

    def absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.cwd, path))

    def keep(self, path: str, suffix: str) -> str:
        """Copy (or reflink) a file that was just made. No hard link: tools such as strip write into the same inode."""
        saved = self.fresh(suffix)
        source = os.open(path, os.O_RDONLY)
        target = os.open(saved, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            left = os.fstat(source).st_size
            while left > 0:
                try:
                    done = os.copy_file_range(source, target, left)
                except OSError:
                    done = os.write(target, os.read(source, 1 << 20))
                if done == 0:
                    break
                left -= done
        finally:
            os.close(source)
            os.close(target)
        return os.path.join(os.path.realpath(os.path.dirname(saved)), os.path.basename(saved))

    def write(self, **fields: object) -> None:
        """Write one record, atomically."""
        fields["cwd"] = self.cwd
        fields["tool"] = self.real
        stamp = f"{time.time_ns():020d}-{os.getpid()}-{self.count}"
        temporary = os.path.join(self.phase, "files", stamp + ".tmp")
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(repr(fields))
        os.rename(temporary, os.path.join(self.phase, "records", stamp))


def main(base: str, kind: str, real: str, name: str) -> None:
    """Entry of a shim: ``base`` is the folder of the capture, ``kind`` that of the tool, ``real`` its path."""
    recorder = Recorder(base, kind, real, name)
    arguments = sys.argv[1:]
    if not os.path.isdir(recorder.phase):
        recorder.become(arguments)
    if kind == "make":
        touched = os.path.join(recorder.phase, "touched")
        if "MAKELEVEL" not in os.environ and os.path.exists(touched):
            with open(touched, encoding="utf-8", errors="surrogateescape") as file:
                settle(os.path.join(base, "tree"), os.path.join(base, "built"), set(file.read().split("\0")))
        recorder.environment = dict(os.environ)  # what make runs is to find the shims
        recorder.become(arguments)
    expanded = expand(arguments)
    if kind == "ld":
        _link_directly(recorder, arguments, expanded)
        return
    if kind == "lld-link":
        _link_for_msvc(recorder, arguments, expanded)
        return
    if kind == "objcopy":
        _copy_object(recorder, arguments)
        return
    command = Command(expanded)
    if command.mode == "none" or is_trial(recorder.cwd, command):
        recorder.become(arguments)
    if command.mode == "link":
        _link(recorder, command)
    else:
        _compile(recorder, command, arguments)


def added_flags(recorder: Recorder, command: Command, output: str) -> list[str]:
    """The flags of capture, placed after the user's so that they win."""
    if all(kind == "assembler" for _, _, kind in command.sources):
        return []
    flags = list(ADDED)
    if recorder.kind == "gcc" and "mingw" in recorder.name:
        # COFF has no sections of strings and constants; these labels tell where each begins.
        flags.append("-Wa,--keep-locals")
    if is_for_msvc(command.arguments):
        flags.append("-gdwarf-4")  # types are compared as DWARF tells them, not as CodeView does
    if recorder.kind == "gcc" and not any(a.startswith("-frandom-seed") for a in command.arguments):
        # Where GCC needs a name that is unique in a program it takes random numbers, unless there is a seed.
        flags.append("-frandom-seed=" + os.path.relpath(recorder.absolute(output), recorder.base))
    return flags


def is_for_msvc(arguments: list[str]) -> bool:
    """Whether a compiler is asked to make what Microsoft's makes."""
    return any(argument.endswith("-windows-msvc") for argument in arguments)


def without_debug_packing(arguments: list[str]) -> list[str]:
    """Drop what would put debug information outside the object, or compress it."""
    return [a for a in arguments if a != "-gsplit-dwarf" and not a.startswith("-gz")]


def _compile(recorder: Recorder, command: Command, arguments: list[str]) -> None:
    """``-c`` (of one source or several) and ``-S``."""
    outputs = []
    for _, source, kind in command.sources:
        name = source.rpartition("/")[2]
        stem = name.rpartition(".")[0] or name
        default = stem + (".o" if command.mode == "compile" else ".s")
        outputs.append((source, kind, command.output or default))
    if not outputs:
        recorder.become(arguments)
    packed = any(a == "-gsplit-dwarf" or a.startswith("-gz") for a in command.arguments)
    user = without_debug_packing(command.arguments) if packed else arguments
    flags = added_flags(recorder, command, outputs[0][2])
    dependencies = ""
    equal = ""
    if command.mode == "compile" and len(outputs) == 1 and is_preprocessed_first(outputs[0][0], outputs[0][1]):
        if not command.depends:
            dependencies = recorder.fresh(".d")
            flags += ["-MD", "-MF", dependencies]
        else:
            dependencies = command.depfile or outputs[0][2].rpartition(".")[0] + ".d"
        if outputs[0][1] == "c" and recorder.remembers:
            equal = reuse_key(recorder, command)
            if equal and _take_again(recorder, command, outputs[0][0], outputs[0][2], dependencies, equal):
                return
    recorder.run([*user, *flags])
    if command.mode != "compile":
        return
    for source, kind, output in outputs:
        if kind != "header" and os.path.isfile(output):
            path = recorder.absolute(output)
            saved, listed = _record_object(recorder, command, source, path, output, dependencies)
            if equal and listed:
                _remember(recorder, equal, saved, listed)


def reuse_key(recorder: Recorder, command: Command) -> str:
    """What names a compilation among all of the build; empty when its object can never be taken for another's."""
    if TYPE_CHECKING:
        from midflight.forge.capture.reuse import key
    else:
        from reuse import key

    return key(recorder.real, command.arguments, recorder.cwd)


def _remember(recorder: Recorder, equal: str, saved: str, dependencies: str) -> None:
    if TYPE_CHECKING:
        from midflight.forge.capture.reuse import files_read, remember
    else:
        from reuse import files_read, remember

    files = files_read(dependencies, recorder.cwd, os.path.join(recorder.base, "tree") + "/")
    if files:
        remember(os.path.realpath(recorder.phase), equal, files, saved, dependencies)


def _take_again(recorder: Recorder, command: Command, source: str, output: str, dependencies: str, equal: str) -> bool:
    """Take the object of an equal compilation of the build before, if there is one."""
    if TYPE_CHECKING:
        from midflight.forge.capture.reuse import recall
    else:
        from reuse import recall

    before = os.path.join(recorder.base, "reuse")
    found = recall(before, equal) if os.path.isdir(before) else None
    if found is None:
        return False
    saved, listed = found
    _copy(saved, output)
    if command.depends:
        _copy(listed, dependencies)
    _write_object(recorder, command, source, recorder.absolute(output), saved, listed)
    return True


def _copy(source: str, target: str) -> None:
    with open(source, "rb") as file:
        content = file.read()
    if os.path.lexists(target):
        os.unlink(target)
    with open(target, "wb") as file:
        file.write(content)


def _record_object(
    recorder: Recorder, command: Command, source: str, path: str, made: str, dependencies: str
) -> tuple[str, str]:
    """Keep and record an object; returns our copies of it and of its list of dependencies (or "")."""
    saved = recorder.keep(made, ".o")
    if dependencies and os.path.isfile(dependencies):
        dependencies = recorder.keep(dependencies, ".d") if command.depends else os.path.realpath(dependencies)
    else:
        dependencies = ""
    _write_object(recorder, command, source, path, saved, dependencies)
    return saved, dependencies


def _write_object(recorder: Recorder, command: Command, source: str, path: str, saved: str, dependencies: str) -> None:
    recorder.write(
        what="object",
        path=path,
        source=recorder.absolute(source),
        saved=saved,
        arguments=tuple(command.arguments),
        lto=command.lto,
        dependencies=dependencies,
    )


def _link(recorder: Recorder, command: Command) -> None:
    """A link, with any sources in the same step compiled to objects of their own first."""
    output = command.output or "a.out"
    arguments = list(command.arguments)
    if any(kind != "header" for _, _, kind in command.sources):
        arguments = _compile_for_link(recorder, command, output)
    # The image is kept with its symbols; what is stripped from the user's own copy does not matter.
    arguments = [a for a in arguments if a not in ("-s", "-Wl,-s", "-Wl,--strip-all", "-Wl,-S", "-Wl,--strip-debug")]
    map_file = command.map
    if is_for_msvc(arguments):
        map_file = recorder.fresh(".map")
        debug = any(a.startswith(("-g", "-Wl,/debug", "-Wl,-debug")) and a != "-g0" for a in arguments)
        chosen = ",".join(a.lower() for a in arguments if "opt:" in a.lower())
        arguments += ["-Wl," + option for option in msvc_options(map_file, debug, chosen)]
    elif map_file is None:
        map_file = recorder.fresh(".map")
        arguments.append("-Wl,-Map=" + map_file)
    recorder.run(arguments)
    _record_link(recorder, arguments, output, map_file, command.relocatable)
    if command.map is None and os.path.exists(map_file):
        os.unlink(map_file)


def _compile_for_link(recorder: Recorder, command: Command, output: str) -> list[str]:
    """Compile the sources of a compile-and-link command; returns the arguments of the link that is left."""
    drop = {index for index, _, _ in command.sources}
    link: list[str] = []
    objects: dict[int, str] = {}
    given = set(command.arguments)
    folder, base = os.path.split(output)
    for index, source, kind in command.sources:
        if kind == "header":
            continue
        stem = source.replace("/", "_").rpartition(".")[0] or source
        made = recorder.fresh("-" + stem[-80:] + ".o")
        options, language = _options_before(command, index, drop)
        dependencies = command.depfile or os.path.join(folder, f"{base}-{stem}.d")
        if not command.depends and is_preprocessed_first(source, kind):
            dependencies = recorder.fresh(".d")
            options += ["-MD", "-MF", dependencies]
        elif command.depends and command.depfile is None:
            options += ["-MF", dependencies]
        if command.depends and not given & {"-MT", "-MQ"}:
            options += ["-MT", output]
        flags = added_flags(recorder, command, f"{output}-{stem}") if kind != "assembler" else []
        recorder.run([*options, *language, "-c", source, "-o", made, *flags])
        path = recorder.absolute(os.path.join(folder, f"{base}-{stem}.o"))
        objects[index], _ = _record_object(recorder, command, source, path, made, dependencies)
        os.unlink(made)
    i = 0
    while i < len(command.arguments):
        argument = command.arguments[i]
        if i in objects:
            link.append(objects[i])
        elif argument in ("-x", "-MF", "-MT", "-MQ"):
            i += 1
        elif (
            not argument.startswith("-x")
            and argument not in ("-MD", "-MMD", "-MP", "-MG")
            and not argument.startswith("-Wp,-M")
            and i not in drop
        ):
            link.append(argument)
        i += 1
    return link


def _options_before(command: Command, source: int, drop: set[int]) -> tuple[list[str], list[str]]:
    """The options for compiling one source of several, and its ``-x`` (which holds for what follows it)."""
    options: list[str] = []
    language: list[str] = []
    arguments = without_debug_packing(command.arguments)
    if len(arguments) != len(command.arguments):
        source -= sum(a == "-gsplit-dwarf" or a.startswith("-gz") for a in command.arguments[:source])
        drop = {i for i, a in enumerate(arguments) if a in {path for _, path, _ in command.sources}}
    i = 0
    while i < len(arguments):
        argument = arguments[i]
        if argument in SEPARATE:
            value = arguments[i + 1] if i + 1 < len(arguments) else ""
            if argument == "-x":
                if i < source:
                    language = ["-x", value]
            elif argument not in ("-o", "-l", "-L", "-Xlinker", "-T", "-u", "-z", "-e"):
                options += [argument, value]
            i += 1
        elif argument.startswith("-x"):
            if i < source:
                language = [argument]
        elif argument.startswith("-") and i not in drop and not argument.startswith(("-o", "-l", "-L", "-Wl,")):
            options.append(argument)
        i += 1
    return options, language


def _link_directly(recorder: Recorder, arguments: list[str], expanded: list[str]) -> None:
    """The linker run by itself (``ld -r`` of libtool, kernels and the like)."""
    output: str | None = "a.out"
    map_file: str | None = None
    for i, argument in enumerate(expanded):
        following = expanded[i + 1] if i + 1 < len(expanded) else ""
        if argument in ("-o", "--output"):
            output = following
        elif argument.startswith("--output="):
            output = argument.partition("=")[2]
        elif argument.startswith("-o") and not argument.startswith("-omagic"):
            output = argument[2:]
        elif argument in ("-Map", "--Map"):
            map_file = following
        elif argument.startswith(("-Map=", "--Map=")):
            map_file = argument.partition("=")[2]
        elif argument in ("-v", "-V", "--version", "--help", "--verbose"):
            recorder.become(arguments)
    own = map_file is None
    if map_file is None:
        map_file = recorder.fresh(".map")
        arguments = [*arguments, "-Map=" + map_file]
    relocatable = any(a in ("-r", "-i", "--relocatable", "-Ur") for a in expanded)
    recorder.run(arguments)
    _record_link(recorder, expanded, output or "a.out", map_file, relocatable)
    if own and os.path.exists(map_file):
        os.unlink(map_file)


def msvc_options(map_file: str, debug: bool, chosen: str) -> list[str]:
    """What capture adds for lld-link; ``debug`` and ``chosen`` are the user's own /debug and /opt."""
    added = ["/lldmap:" + map_file, "/debug:symtab"]
    if not debug:
        added += ["/opt:" + choice for choice in ("ref", "icf") if choice not in chosen]
    return added


def _link_for_msvc(recorder: Recorder, arguments: list[str], expanded: list[str]) -> None:
    """LLVM's linker with the options of Microsoft's. The image is made with a symbol table, which tells what folding
    made of equal functions; what is dropped and folded without one (/debug changes that) is so with it."""
    options: dict[str, str] = {}
    for argument in expanded:
        if argument[:1] in ("/", "-") and not os.path.isfile(argument):
            name, _, value = argument[1:].partition(":")
            options[name.lower()] = value if name.lower() != "opt" else options.get("opt", "") + "," + value.lower()
    if "lib" in options or "help" in options or "version" in options:
        recorder.become(arguments)
    first = next((a for a in expanded if a.lower().endswith((".obj", ".o"))), "a.obj")
    default = os.path.basename(first).rpartition(".")[0] + (".dll" if "dll" in options else ".exe")
    output = options.get("out") or default
    map_file = recorder.fresh(".map")
    recorder.run([*arguments, *msvc_options(map_file, "debug" in options, options.get("opt", ""))])
    _record_link(recorder, expanded, output, map_file, relocatable=False)
    if os.path.exists(map_file):
        os.unlink(map_file)


def _record_link(recorder: Recorder, arguments: list[str], output: str, map_file: str, relocatable: bool) -> None:
    if TYPE_CHECKING:
        from midflight.forge.capture.linkrecord import digest, link_inputs
    else:
        from linkrecord import digest, link_inputs  # too slow for every compilation

    if not os.path.isfile(output):
        return
    inputs = link_inputs(recorder.cwd, arguments, output, map_file)
    recorder.write(
        what="link",
        path=os.path.realpath(output),
        sha256=digest(output),
        relocatable=relocatable,
        saved="" if relocatable else recorder.keep(output, ".image"),
        arguments=tuple(arguments),
        inputs=inputs,
    )


def _copy_object(recorder: Recorder, arguments: list[str]) -> None:
    """An object under another name, as glibc's own link has it: recorded as a link of that one object."""
    if TYPE_CHECKING:
        from midflight.forge.capture.linkrecord import digest, starts_as_object
    else:
        from linkrecord import digest, starts_as_object

    names = [argument for argument in arguments if not argument.startswith(("-", "@"))]
    source, target = names[-2:] if len(names) > 1 else ("", "")
    if source == target or not os.path.isfile(source) or not starts_as_object(source):
        recorder.become(arguments)
    recorder.run(arguments)
    if not os.path.isfile(target) or not starts_as_object(target):
        return
    before, after = digest(source), digest(target)
    if before != after:  # otherwise the target is known by its content
        recorder.write(
            what="link",
            path=os.path.realpath(target),
            sha256=after,
            relocatable=True,
            saved="",
            arguments=tuple(arguments),
            inputs=[(recorder.absolute(source), "", before)],
        )


def settle(tree: str, built: str, touched: set[str]) -> None:
    """Give files that were rewritten with the content they had (by configure run again) their old time back.

    Runs before the outermost make or ninja of the build with the fix, so that it remakes only what the fix touches.
    ``touched`` are files that are to stay new. So do objects and archives: those that make renewed have a reason.
    """
    for folder, _, names in os.walk(built):
        other = tree + folder[len(built) :]
        for name in names:
            old = os.path.join(folder, name)
            new = os.path.join(other, name)
            try:
                if new in touched:
                    continue
                a = os.lstat(old)
                b = os.lstat(new)
                if a.st_mtime_ns >= b.st_mtime_ns or a.st_size != b.st_size or (a.st_mode ^ b.st_mode) & 0o170000:
                    continue
                if a.st_mode & 0o170000 == 0o100000 and _same_text(old, new):
                    os.utime(new, ns=(b.st_atime_ns, a.st_mtime_ns))
            except OSError:
                continue


def _same_text(one: str, other: str) -> bool:
    with open(one, "rb") as a, open(other, "rb") as b:
        while True:
            x = a.read(1 << 18)
            if (
                x[:8] in (b"!<arch>\n", b"!<thin>\n")
                or x[:4] == b"\x7fELF"
                or x[:2] in (b"MZ", b"\x64\x86")
                or x != b.read(1 << 18)
            ):
                return False
            if not x:
                return True
