"""From the records of the wrapper to a build: which link made the image, and which captured objects went into it.

Objects are recognised by their content, so it does not matter how often they were moved, or packed into archives,
between the compiler and the linker.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from midflight.errors import ForgeError, ImageError, Refused
from midflight.forge.capture.linkrecord import Input, archive_members, digest
from midflight.forge.model import Build, CompiledObject
from midflight.forge.refusals import REFUSALS
from midflight.image.binary import is_image, open_image, open_object, read_object_bytes


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One compilation that the wrapper saw."""

    made: CompiledObject
    lto: bool
    dependencies: Path | None
    """The compiler's own list of the files it read, in make's syntax."""


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """One link that the wrapper saw."""

    path: Path
    sha256: str
    relocatable: bool
    saved: Path | None
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class Records:
    """All that was recorded, in the order of time."""

    objects: tuple[ObjectRecord, ...]
    links: tuple[LinkRecord, ...]

    def after(self, earlier: Records) -> Records:
        """These records as the continuation of an earlier build in the same tree."""
        return Records(earlier.objects + self.objects, earlier.links + self.links)


@dataclass(frozen=True, slots=True)
class Captured:
    """A build, with what the forge itself needs to know beside it."""

    build: Build
    link: LinkRecord
    foreign: Mapping[str, str]
    """Objects of the tree that are in the image, but that no recorded compiler made: name to SHA-256."""
    dependencies: Mapping[Path, Path]
    """List of dependencies by object path, for the objects of the image."""


def read_records(folder: Path) -> Records:
    """Read what the wrapper wrote under a phase folder."""
    objects: list[ObjectRecord] = []
    links: list[LinkRecord] = []
    for path in sorted((folder / "records").iterdir()):
        fields = ast.literal_eval(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if fields["what"] == "object":
            saved = Path(fields["saved"])
            made = CompiledObject(
                path=Path(fields["path"]),
                source=Path(fields["source"]),
                saved=saved,
                sha256=digest(str(saved)),
                compiler=_compiler(saved),
                arguments=(fields["tool"], *fields["arguments"]),
                directory=Path(fields["cwd"]),
            )
            depends = Path(fields["dependencies"]) if fields["dependencies"] else None
            objects.append(ObjectRecord(made, fields["lto"], depends))
        else:
            saved_image = Path(fields["saved"]) if fields["saved"] else None
            links.append(
                LinkRecord(Path(fields["path"]), fields["sha256"], fields["relocatable"], saved_image, fields["inputs"])
            )
    return Records(tuple(objects), tuple(links))


def _compiler(path: Path) -> str:
    try:
        with open_object(path) as code:
            return "; ".join(code.comments)
    except ImageError:
        return ""


def image_file(tree: Path, image: str, records: Records, make: str) -> Path:
    """The image as a file of the tree; behind a libtool wrapper script, the program itself.

    Raises:
        ForgeError: the build did not make it.
    """
    path = tree / image
    if path.is_file() and is_image(path):
        return path.resolve()
    hidden = path.parent / ".libs"
    for name in (path.name, "lt-" + path.name):
        if (hidden / name).is_file() and is_image(hidden / name):
            return (hidden / name).resolve()
    made = _shown(os.path.relpath(r.path, tree) for r in records.links if not r.relocatable)
    what = "is no ELF file or PE image" if path.exists() else "is not there"
    raise ForgeError(
        f"the build ended well, but {image} {what} after '{make}'; it linked {made}; give one of these as --image"
    )


def _shown(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    return (
        ", ".join(unique[:8]) + (f" and {len(unique) - 8} more" if len(unique) > 8 else "")
    ) or "nothing that was seen"


def _build_id(path: Path) -> str | None:
    try:
        with open_image(path) as image:
            return image.build_id
    except ImageError:
        return None


def find_link(records: Records, image: Path, tree: Path) -> LinkRecord:
    """The link that made an image: by content, by path, or (when it was stripped or copied) by build-id.

    Raises:
        ForgeError: no recorded link made it.
    """
    links = [
        link
        for link in reversed(records.links)
        if not link.relocatable and link.saved is not None and link.saved.exists()
    ]
    sha256 = digest(str(image))
    for link in links:
        if link.sha256 == sha256:
            return link
    for link in links:
        if link.path == image:
            return link
    identity = _build_id(image)
    for link in links:
        if identity is not None and link.saved is not None and _build_id(link.saved) == identity:
            return link
    name = os.path.relpath(image, tree)
    if not records.objects and not records.links:
        raise NotCaptured(
            f"the build made {name} but no compiler was seen at work; let it take its compiler from the PATH "
            "(CC=gcc, without a folder), and see that it really compiles (a tree that is already built does not)"
        )
    seen = _shown(os.path.relpath(link.path, tree) for link in links)
    raise ForgeError(
        f"the build made {name}, but its link was not seen; links seen: {seen}. "
        "Let the build link with a compiler driver or ld from the PATH, or give one of these as --image"
    )


class NotCaptured(ForgeError):
    """Compilers were at work, but not those of the shims: they were run by their full paths."""


class _Resolver:
    """Finds the captured object behind each input of a link."""

    def __init__(self, records: Records, tree: Path) -> None:
        self.tree = tree
        self.by_content: dict[str, list[ObjectRecord]] = {}
        self.by_path: dict[str, ObjectRecord] = {}
        self.partial: dict[str, LinkRecord] = {}
        self.foreign: dict[str, str] = {}
        self.found: list[tuple[ObjectRecord, Input]] = []
        for record in records.objects:
            self.by_content.setdefault(record.made.sha256, []).append(record)
            self.by_path[str(record.made.path)] = record
        for link in records.links:
            if link.relocatable:
                self.partial[link.sha256] = link

    def resolve(self, inputs: Iterable[Input], depth: int = 0) -> None:
        for entry in inputs:
            file, member, sha256 = entry
            if same := self.by_content.get(sha256):
                self.found.append((self._best(same, file, member), entry))
            elif sha256 in self.partial and depth < 16:
                self.resolve(self.partial[sha256].inputs, depth + 1)
            elif not member and file in self.by_path:
                # Changed in place after it was compiled (strip, objcopy): still that object; matching proves its code.
                self.found.append((self.by_path[file], entry))
            elif Path(file).is_relative_to(self.tree):
                name = os.path.relpath(file, self.tree)
                self.foreign[f"{name}({member})" if member else name] = sha256

    @staticmethod
    def _best(same: list[ObjectRecord], file: str, member: str) -> ObjectRecord:
        name = os.path.basename(member or file)
        for record in reversed(same):
            if str(record.made.path) == file:
                return record
        for record in reversed(same):
            if record.made.path.name == name:
                return record
        return same[-1]


def keep_image(link: LinkRecord, copy: Path) -> None:
    """Put our copy of a linked image under a name of its own."""
    if link.saved is not None and not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(link.saved, copy)
        copy.chmod(0o755)


def resolve(records: Records, image: Path, tree: Path, copy: Path, strangers: bool = True) -> Captured:
    """Put together the build that made ``image``, of which a copy is (or will be) at ``copy``.

    Raises:
        NotCaptured: no input of the link was compiled by a recorded compiler, or one was not and ``strangers`` are not
            allowed; or nothing at all was recorded.
        ForgeError: the build was seen, but no link that makes this image.
        Refused: the image is made with link-time optimisation (MF101).
    """
    return resolve_link(records, find_link(records, image, tree), tree, copy, strangers)


def resolve_link(records: Records, link: LinkRecord, tree: Path, copy: Path, strangers: bool = True) -> Captured:
    """As :func:`resolve`, for a link that is known already."""
    resolver = _Resolver(records, tree)
    resolver.resolve(link.inputs)
    inputs: dict[Path, ObjectRecord] = {}
    for record, (file, member, _) in resolver.found:
        path = record.made.path
        if path in inputs and inputs[path].made.sha256 != record.made.sha256:
            # Two objects were made under one name and moved: call this one by where it was linked.
            path = Path(f"{file}({member})" if member else file)
        inputs.setdefault(path, record)
    if not inputs:
        names = _shown(resolver.foreign) if resolver.foreign else "none in the tree"
        raise NotCaptured(
            f"no recorded compiler made the objects of {os.path.relpath(link.path, tree)} (objects linked: {names}); "
            "let the build take its compiler from the PATH (CC=gcc, without a folder)"
        )
    _refuse_lto(inputs, tree)
    objects = {record.made.path: record.made for record in records.objects}
    objects.update({path: _renamed(record.made, path) for path, record in inputs.items()})
    dependencies = {p: r.dependencies for p, r in inputs.items() if r.dependencies is not None}
    if any(_is_compiled(tree / name) for name in resolver.foreign) and not strangers:
        raise NotCaptured(f"the compilers of {_shown(resolver.foreign)} were not seen")
    return Captured(Build(objects, copy, tuple(inputs)), link, resolver.foreign, dependencies)


def _renamed(made: CompiledObject, path: Path) -> CompiledObject:
    if made.path == path:
        return made
    return CompiledObject(path, made.source, made.saved, made.sha256, made.compiler, made.arguments, made.directory)


def _refuse_lto(inputs: Mapping[Path, ObjectRecord], tree: Path) -> None:
    for path, record in inputs.items():
        if record.lto or _is_lto(record.made.saved):
            name = os.path.relpath(path, tree)
            raise Refused(f"MF101 {name}: {REFUSALS['MF101'].reason}. {REFUSALS['MF101'].remedy}")


def _is_lto(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(4) == b"BC\xc0\xde":
            return True
    try:
        with open_object(path) as code:
            return code.is_lto
    except ImageError:
        return False


def _is_compiled(path: Path) -> bool:
    """Whether an object, or a member of an archive, is of a compiler (which leaves its name in .comment) rather than
    of an assembler."""
    archive, parenthesis, member = str(path).removesuffix(")").rpartition("(")
    try:
        if not parenthesis:
            with open_object(path) as code:
                return bool(code.comments)
        for name, data in archive_members(archive):
            if member in (name, os.path.basename(name)) and read_object_bytes(data, name).comments:
                return True
        return False
    except (ImageError, OSError):
        return bool(parenthesis)


_DEPENDENCY = re.compile(r"(?:\\.|[^\s\\])+")


def read_dependencies(file: Path, directory: Path) -> tuple[Path, ...]:
    """Files named by a list of dependencies in make's syntax (GCC manual, "Preprocessor Options", -M)."""
    text = file.read_text(encoding="utf-8", errors="surrogateescape").replace("\\\n", " ")
    names: dict[str, None] = {}
    for line in text.splitlines():
        _, colon, rest = line.partition(": ")
        if not colon or line.startswith("#"):
            continue
        for word in _DEPENDENCY.findall(rest):
            name = re.sub(r"\\([ #:\\])", r"\1", word).replace("$$", "$")
            names.setdefault(os.path.normpath(os.path.join(directory, name)))
    return tuple(Path(name) for name in names)
