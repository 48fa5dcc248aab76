"""Compiles pairs of small sources, without and with a fix, and shows their difference in plain names."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from midflight.forge.difference.diff import difference
from midflight.forge.model import ObjectCode, ObjectDiff
from midflight.forge.objects import read_object

FLAGS = ("-O2", "-g", "-ffunction-sections", "-fdata-sections")


def compile_object(directory: Path, source: str, name: str, compiler: str = "gcc", flags: tuple[str, ...] = ()) -> Path:
    """Compile one source as ``unit.c`` (or .cc, .S) there; the object has another name, so that both stay."""
    suffix = {"g++": "cc", "clang++": "cc"}.get(compiler, "S" if "-xassembler" in flags else "c")
    file = directory / f"unit.{suffix}"
    file.write_text(source)
    out = directory / f"{name}.o"
    command = [compiler, *FLAGS, *flags, "-c", file.name, "-o", out.name]
    if suffix == "S":
        command = [compiler, "-c", file.name, "-o", out.name]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@dataclass(frozen=True)
class Pair:
    """A compiled pair and its difference."""

    pre: ObjectCode
    post: ObjectCode
    diff: ObjectDiff

    @property
    def changed(self) -> set[str]:
        return {new for _, new in self.diff.changed}

    @property
    def codes(self) -> set[tuple[str, str]]:
        return {(f.code, f.symbol) for f in self.diff.findings}

    def reason(self, code: str) -> str:
        return next(f.reason for f in self.diff.findings if f.code == code)


def compile_pair(
    directory: Path,
    before: str,
    after: str,
    compiler: str = "gcc",
    flags: tuple[str, ...] = (),
    post_compiler: str = "",
) -> Pair:
    """Compile both versions of a source in place, as a build in one tree does, and compare them."""
    pre = read_object(compile_object(directory, before, "pre", compiler, flags), directory / "unit.o")
    post_file = compile_object(directory, after, "post", post_compiler or compiler, flags)
    post = read_object(post_file, directory / "unit.o")
    return Pair(pre, post, difference(pre, post))
