"""clang for the GNU ABI (MinGW): it gives names to its constants, not labels, and links by GNU's linker or by lld."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.forge.objects import read_object
from tests.forge.windows.programs import CLANG_GNU, Changes, request
from tests.forge.windows.test_windows import built

# In the middle and at the beginning of words that a table of distances leads to.
WORDS: Changes = {"parse.c": ('{"none", "word", "number"}', '{"none", "wort", "lumber"}')}
NEW: Changes = {"parse.c": ('case 2: puts("two"); return 2.5;', 'case 2: puts("two, mended"); return 2.625;')}


@pytest.fixture(scope="module", params=["", "-fuse-ld=lld -s"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Where a program is built, and its source, for each way of linking."""
    makefile = CLANG_GNU["Makefile"].replace("LINKER", request.param)
    return tmp_path_factory.mktemp("clang"), {**CLANG_GNU, "Makefile": makefile}


@pytest.mark.parametrize(("changes", "texts"), [(WORDS, (b"wort\0", b"lumber\0")), (NEW, (b"two, mended\0",))])
def test_a_fix(source: tuple[Path, dict[str, str]], changes: Changes, texts: tuple[bytes, ...]) -> None:
    where, files = source
    result, target = built(request(where, files, changes))
    names = {function.name for function in target.functions}
    assert names == {"parse_record"} if changes is not NEW else "rate" in names
    assert all(text in result.payloads[target.payload] for text in texts)
    assert "clang version" in result.manifest.compiler


def test_constants_without_an_identity_have_no_name(source: tuple[Path, dict[str, str]]) -> None:
    where, files = source
    built(request(where, files, WORDS))
    objects = [file for file in where.glob("work/*/pre/files/*.o") if b"weights" in file.read_bytes()]
    atoms = read_object(objects[0], Path("parse.o")).atoms.values()
    strings = {atom.data for atom in atoms if atom.kind == "string"}
    assert {b"too long: %s\n\0", b"none\0", b"word\0", b"number\0", b"two\0"} <= strings
    assert not any(atom.name.startswith((".str", "reltable")) for atom in atoms)
    assert any(atom.name == "weights" for atom in atoms), "what the source names has an identity"
