"""Builds generated programs as distributions do, and as the forge does: run with and without names, pre by sections."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

SECTIONS = ("-ffunction-sections", "-fdata-sections")
KEEP_LABELS = "-Wa,-L"
"""The assembler keeps the compiler's own labels (.LC0, .L7): names for strings, jump tables, instructions."""

_COMPILERS = ("gcc", "clang")
_LEVELS = ("-O0", "-O1", "-O2", "-O3", "-Os")
_KINDS = ("pie", "no-pie", "shared", "static")
_LINKERS = ("bfd", "lld", "gold")
_KIND_FLAGS = {"pie": ("-fPIE",), "no-pie": ("-fno-pie",), "shared": ("-fPIC",), "static": ("-fno-pie",)}
_KIND_LINK = {"pie": ("-pie",), "no-pie": ("-no-pie",), "shared": ("-shared",), "static": ("-static",)}
_FLAGS = (
    "-fcf-protection",
    "-fno-plt",
    "-fstack-protector-strong",
    "-fno-omit-frame-pointer",
    "-fno-semantic-interposition",
    "-fvisibility=hidden",
    "-fno-builtin",
    "-march=x86-64-v3",
    "-falign-functions=1",
    "-fno-inline",
    "-g",
)
_GCC_FLAGS = ("-fno-toplevel-reorder", "-fno-reorder-blocks-and-partition", "-mtls-dialect=gnu2", "-funroll-loops")
_LINK = (
    "-Wl,-z,now",
    "-Wl,-z,lazy",
    "-Wl,-O2",
    "-Wl,--no-relax",
    "-Wl,--hash-style=sysv",
    "-Wl,-z,norelro",
    "-Wl,-z,noseparate-code",
    "-Wl,-z,pack-relative-relocs",
    "-Wl,-Bsymbolic",
    "-Wl,-Bsymbolic-functions",
)
_NOT_IN = {"-Wl,--no-relax": ("lld",), "-Wl,-z,noseparate-code": ("gold",), "-Wl,-z,pack-relative-relocs": ("gold",)}


class Unbuildable(Exception):
    """Compiler or linker said no."""


@dataclass(frozen=True, slots=True)
class Kit:
    """How to compile and link one program."""

    cc: str = "gcc"
    level: str = "-O2"
    kind: str = "pie"
    linker: str = "bfd"
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.cc, self.level, self.kind, self.linker, *self.flags, *self.link))

    def compile(self, name: str) -> list[str]:
        """The compiler's command, but for what to compile."""
        cc = {"gcc": "g++", "clang": "clang++"}[self.cc] if name.endswith(".cc") else self.cc
        return [cc, self.level, *_KIND_FLAGS[self.kind], "-w", *self.flags]


def kit_of(seed: int, hard: bool = False) -> Kit:
    """The kit of a seed: 120 seeds in a row have every compiler, level, kind and linker with each other.

    ``hard``: also what hides which functions there are: no unwind tables, --gc-sections, --icf.
    """
    bases = list(product(_COMPILERS, _LEVELS, _KINDS, _LINKERS))
    random.Random(len(bases)).shuffle(bases)
    cc, level, kind, linker = bases[seed % len(bases)]
    draw = random.Random(f"kit {seed}")
    flags = [flag for flag in _FLAGS + (_GCC_FLAGS if cc == "gcc" else ()) if draw.random() < 0.12]
    link = [flag for flag in _LINK if draw.random() < 0.15 and linker not in _NOT_IN.get(flag, ())]
    if hard and draw.random() < 0.3:
        flags.append("-fno-asynchronous-unwind-tables")
    if hard and draw.random() < 0.5:
        flags += SECTIONS
        dropping = (
            ("-Wl,--gc-sections",) if linker == "bfd" else ("-Wl,--gc-sections", "-Wl,--icf=all", "-Wl,--icf=safe")
        )
        link.append(draw.choice(dropping))
    return Kit(cc, level, kind, linker, tuple(flags), tuple(link))


@dataclass(frozen=True, slots=True)
class Built:
    """The files of one program."""

    named: Path
    """The image with every symbol and label."""
    plain: Path
    """The same without the labels: as a linker leaves it."""
    stripped: Path
    objects: Mapping[str, Path]
    """Pre objects by source name, in the order of the link."""
    labelled: Mapping[str, Path]
    """The same with labels."""
    linked: Path
    """What the capture would link: pre objects in place of run's."""


def sh(command: Sequence[str | Path], cwd: Path) -> str:
    """Run a command that must succeed. Raises Unbuildable."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unbuildable(f"{' '.join(map(str, command))}: {done.stderr[:2000]}")
    return done.stdout


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Put texts into files."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def compile_all(folder: Path, texts: Mapping[str, str], kit: Kit, out: str, extra: Sequence[str]) -> dict[str, Path]:
    """Compile texts that ``write`` has put there; the objects, in order."""
    made = {}
    (folder / out).mkdir(exist_ok=True)
    for name in texts:
        made[name] = folder / out / f"{name.replace('/', '_')}.o"
        sh([*kit.compile(name), *extra, "-c", name, "-o", made[name]], folder)
    return made


def link(folder: Path, objects: Sequence[Path], kit: Kit, name: str) -> Path:
    """Link an image."""
    image = folder / name
    driver = "g++" if any(".cc" in path.name for path in objects) else "gcc"
    main = [path for path in objects if not (kit.kind == "shared" and path.name.startswith("main.c"))]
    options = (f"-fuse-ld={kit.linker}", *_KIND_LINK[kit.kind], *kit.link, "-Wl,--build-id", "-Wl,--discard-none")
    sh([driver, *options, *main, "-o", image], folder)
    return image


def build(folder: Path, texts: Mapping[str, str], kit: Kit) -> Built:
    """Build a program in all ways. Raises Unbuildable."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, texts)
    run = compile_all(folder, texts, kit, "run", [KEEP_LABELS])
    named = link(folder, list(run.values()), kit, "named")
    sh(["objcopy", "--discard-locals", named, folder / "plain"], folder)
    sh(["strip", named, "-o", folder / "stripped"], folder)
    inside = [name for name in texts if not (kit.kind == "shared" and name == "main.c")]
    objects = compile_all(folder, {name: texts[name] for name in inside}, kit, "pre", SECTIONS)
    labelled = compile_all(folder, {name: texts[name] for name in inside}, kit, "labelled", [*SECTIONS, KEEP_LABELS])
    main = {} if len(inside) == len(texts) else {"main.c": run["main.c"]}
    linked = link(folder, [*objects.values(), *main.values()], kit, "linked")
    return Built(named, folder / "plain", folder / "stripped", objects, labelled, linked)
