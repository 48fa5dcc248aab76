"""Test programs that patch themselves: what a hotpatch makes of them must be what the fixed program does.

A test gives sources without and with a fix. They are compiled and linked by a real compiler and linker as the capture
would have them, the forge makes the payload, and an independent loader (selfpatch.c) in the program applies it.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midflight.forge.forge import ForgeRequest, ForgeResult, forge_pair
from midflight.forge.model import Build, BuildPair, CompiledObject
from midflight.image.elf import ElfFile
from midflight.patch.manifest import Target
from midflight.patch.validate import validate_manifest

LOADER = Path(__file__).with_name("selfpatch.c")
SECTIONS = ("-ffunction-sections", "-fdata-sections")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; returns its standard output."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Kit:
    """How to compile and link. ``library``: everything but main and the loader's caller becomes a shared library."""

    cc: str = "gcc"
    flags: tuple[str, ...] = ("-O2",)
    link: tuple[str, ...] = ()
    library: bool = False

    def __str__(self) -> str:
        return " ".join((self.cc, *self.flags, *self.link, *(["library"] if self.library else [])))


@dataclass(slots=True)
class Project:
    """Sources by file name; ``fixed`` has those that the fix changes or adds. ``main.c`` or ``main.cc`` calls
    ``before``, then ``selfpatch``; it is not a part of the image when that is a library."""

    folder: Path
    sources: Mapping[str, str]
    fixed: Mapping[str, str]
    kit: Kit = field(default_factory=Kit)
    objects: dict[str, dict[str, Path]] = field(default_factory=dict)

    def pair(self) -> BuildPair:
        """Compile and link pre, post and the plain build."""
        tree = self.folder / "tree"
        tree.mkdir(parents=True)
        builds = {}
        for side in ("pre", "post"):
            for name, text in {**self.sources, **(self.fixed if side == "post" else {})}.items():
                (tree / name).write_text(text)
            builds[side] = self._build(side, tree, SECTIONS)
            if side == "pre":
                plain = self._build("plain", tree, ()).image
        changed = [
            path
            for path in builds["post"].inputs
            if path not in builds["pre"].objects
            or builds["pre"].objects[path].sha256 != builds["post"].objects[path].sha256
        ]
        return BuildPair(tree, plain, builds["pre"], builds["post"], tuple(changed))

    def _build(self, side: str, tree: Path, extra: tuple[str, ...]) -> Build:
        out = self.folder / side
        out.mkdir()
        made: dict[Path, CompiledObject] = {}
        files = []
        for source in sorted(p for p in tree.iterdir() if p.suffix in (".c", ".cc", ".S")):
            saved = out / f"{source.name}.o"
            cc = self._compiler(source)
            pic = ("-fPIC",) if self.kit.library and not source.name.startswith("main.") else ()
            options = (*self.kit.flags, *pic, "-g", *extra)
            run(cc, *options, "-c", source.name, "-o", saved, cwd=tree)
            if self.kit.library and source.name.startswith("main."):
                main = saved
                continue
            files.append(saved)
            path = tree / f"{source.name}.o"
            digest = hashlib.sha256(saved.read_bytes()).hexdigest()
            made[path] = CompiledObject(path, source, saved, digest, "", (cc, *options, "-c", source.name), tree)
        link = "g++" if any(p.suffix == ".cc" for p in tree.iterdir()) else "gcc"
        image = out / ("libimage.so" if self.kit.library else "image")
        loader = out / "selfpatch.o"
        code = "-fPIC" if self.kit.library else "-fno-pie" if "-no-pie" in self.kit.link else "-fPIE"
        run("gcc", "-O1", code, "-c", LOADER, "-o", loader, cwd=out)
        if self.kit.library:
            shared = ("-shared", "-Wl,-soname,libimage.so", "-Wl,--build-id")
            run(link, *shared, *self.kit.link, *files, loader, "-o", image, cwd=out)
            run(link, main, image, "-Wl,-rpath,$ORIGIN", "-o", out / "program", cwd=out)
        else:
            run(link, "-Wl,--build-id", *self.kit.link, *files, loader, "-o", image, "-ldl", cwd=out)
        return Build(made, image, tuple(made))

    def _compiler(self, source: Path) -> str:
        return {"gcc": "g++", "clang": "clang++"}[self.kit.cc] if source.suffix == ".cc" else self.kit.cc

    def program(self, side: str) -> Path:
        return self.folder / side / ("program" if self.kit.library else "image")

    def forge(self, pair: BuildPair | None = None, **options: object) -> ForgeResult:
        """The hotpatch for the plain build."""
        pair = pair or self.pair()
        fix = self.folder / "fix"
        fix.mkdir(exist_ok=True)
        base = self.folder / "base"
        base.mkdir(exist_ok=True)
        for name, text in self.sources.items():
            (base / name).write_text(text)
            (fix / name).write_text(text)
        for name, text in self.fixed.items():
            (fix / name).write_text(text)
        request = ForgeRequest(base, fix, "make", pair.post.image.name, self.folder / "work", **options)  # type: ignore[arg-type]
        result = forge_pair(request, pair)
        validate_manifest(result.manifest)
        return result

    def outputs(self, result: ForgeResult, *arguments: str) -> tuple[str, str, str]:
        """What the unfixed program says, what it says after it was patched, and what the fixed program says."""
        plan = self.folder / "plan"
        target = result.manifest.targets[0]
        plan.write_text(make_plan(target, result.payloads[target.payload], self.folder / "plain" / _image(self.kit)))
        plain = self.program("plain")
        before = run(plain, "-", *arguments, cwd=self.folder)
        return (
            before,
            run(plain, plan, *arguments, cwd=self.folder),
            run(self.program("post"), "-", *arguments, cwd=self.folder),
        )


def _image(kit: Kit) -> str:
    return "libimage.so" if kit.library else "image"


def make_plan(target: Target, payload: bytes, image: Path) -> str:
    """The plan that selfpatch.c reads."""
    with ElfFile.open(image) as elf:
        anchor = elf.symbol("selfpatch") or elf.dynamic_symbol("selfpatch")
        assert anchor is not None
    end = max(s.offset + s.size for s in target.segments)
    lines = [f"{anchor.value:x} {-(-end // 4096) * 4096:x}"]
    for segment in target.segments:
        part = payload[segment.file_offset : segment.file_offset + segment.file_size]
        lines.append(f"bytes {segment.offset:x} {len(part)} " + " ".join(f"{b:x}" for b in part))
    lines += [f"import {item.name} {item.version or '-'}" for item in target.imports]
    for item in target.relocations:
        lines.append(f"relocation {item.offset:x} {item.kind} {item.form} {item.target:x} {item.addend}")
    for segment in target.segments:
        lines.append(f"protect {segment.offset:x} {-(-segment.size // 4096) * 4096:x} {segment.kind}")
    if target.unwind is not None and target.unwind.throws:
        lines.append(f"unwind {target.unwind.offset:x}")
    hooks = dict(target.hooks)
    if "before_apply" in hooks:
        lines.append(f"call {hooks['before_apply']:x}")
    for function in target.functions:
        entry = function.entry
        with ElfFile.open(image) as elf:
            assert elf.read_vaddr(entry.vaddr, len(entry.before)) == entry.before
            for old in function.ranges:
                assert hashlib.sha256(elf.read_vaddr(old.vaddr, old.size)).hexdigest() == old.sha256
        if entry.kind == "near":
            lines.append(f"near {entry.vaddr:x} {function.new_offset:x}")
        else:
            lines.append(f"short {entry.vaddr:x} {entry.pad_vaddr:x} {function.new_offset:x}")
    if "after_apply" in hooks:
        lines.append(f"call {hooks['after_apply']:x}")
    return "\n".join(lines) + "\n"
