"""A PDB tells of an image without symbols what nothing else does; and one of another build tells nothing."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from midflight.errors import ImageError, InputError
from midflight.forge.forge import ForgeRequest, forge
from midflight.image.pdb import PdbFile
from tests.forge.windows.programs import request
from tests.forge.windows.test_windows import codes, refused

TWINS = {
    "Makefile": (
        "CC = clang --target=x86_64-pc-windows-msvc\nFLAGS = -O2 -g -gcodeview\nMORE =\n"
        "prog.exe: main.obj one.obj two.obj\n"
        "\tlld-link /entry:mainCRTStartup /subsystem:console /nodefaultlib /debug $(MORE) /out:$@ $^\n"
        "%.obj: %.c\n\t$(CC) $(FLAGS) -c $< -o $@\n"
    ),
    # The same code twice, called through pointers that nothing tells apart.
    "one.c": "int first(int x) { int y = x; while (y > 9) y = y / 10 + y % 10; return y * 3 + x; }\n",
    "two.c": "int second(int x) { int y = x; while (y > 9) y = y / 10 + y % 10; return y * 3 + x; }\n",
    "main.c": (
        "int first(int x), second(int x);\nint _fltused;\n"
        "int (*const table[2])(int) = {first, second};\n"
        "int mainCRTStartup(void) { int n = 0; for (int i = 0; i < 2; i++) n += table[i](i + 40); return n; }\n"
    ),
}
FIX = {"two.c": ("y * 3 + x", "y * 3 + x + 1")}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("twins")


@pytest.fixture(scope="module")
def shipped(twins: Path) -> Path:
    """The binary that runs, and its PDB beside it."""
    folder = twins / "shipped"
    shutil.copytree(request(twins, TWINS, FIX).source, folder)
    subprocess.run(["make", "-s"], cwd=folder, check=True)
    return folder


def asked_for(twins: Path, running: Path, **more: object) -> ForgeRequest:
    return replace(request(twins, TWINS, FIX), running=running, **more)  # type: ignore[arg-type]


def test_functions_that_only_a_name_tells_apart(twins: Path, shipped: Path, tmp_path: Path) -> None:
    result = forge(asked_for(twins, shipped / "prog.exe"))
    (target,) = result.manifest.targets
    with PdbFile.open(shipped / "prog.pdb") as pdb:
        symbol = pdb.symbol("second")
        assert symbol is not None and target.functions[0].ranges[0].vaddr == symbol.value
    assert result.report["match"]["debug_file"] == str(shipped / "prog.pdb")
    alone = tmp_path / "prog.exe"
    shutil.copy(shipped / "prog.exe", alone)
    assert codes(refused(asked_for(twins, alone))) == {"MF131"}
    named = forge(asked_for(twins, alone, symbols=shipped / "prog.pdb"))
    assert named.manifest.targets[0].functions == target.functions


def test_the_pdb_of_another_build(twins: Path, shipped: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped, tmp_path / "other")
    subprocess.run(["make", "-s", "-B", "MORE=/stack:0x300000"], cwd=tmp_path / "other", check=True)
    alone = tmp_path / "prog.exe"
    shutil.copy(shipped / "prog.exe", alone)
    shutil.copy(tmp_path / "other" / "prog.pdb", tmp_path / "prog.pdb")
    assert codes(refused(asked_for(twins, alone))) == {"MF131"}, "one that lies beside it is passed over"
    with pytest.raises(ImageError, match="of another build"):
        forge(asked_for(twins, alone, symbols=tmp_path / "prog.pdb"))


def test_a_pdb_that_lies(twins: Path, shipped: Path, tmp_path: Path) -> None:
    """Symbols propose; the code at the place must be the function's all the same."""
    raw = bytearray((shipped / "prog.pdb").read_bytes())
    name = b"second\0"
    assert raw.count(name) >= 1
    at = -1
    changed = 0
    while (at := raw.find(name, at + 1)) >= 0:
        if raw[at - 12 : at - 10] == b"\x0e\x11":  # S_PUB32: length, kind, flags, offset, section, name
            raw[at - 6 : at - 2] = (int.from_bytes(raw[at - 6 : at - 2], "little") + 16).to_bytes(4, "little")
            changed += 1
    assert changed == 1
    lies = tmp_path / "prog.pdb"
    lies.write_bytes(raw)
    assert codes(refused(asked_for(twins, shipped / "prog.exe", symbols=lies))) & {"MF130", "MF131", "MF133"}


def test_other_programs_have_no_pdb(twins: Path, shipped: Path) -> None:
    with pytest.raises(InputError, match="Windows"):
        forge(asked_for(twins, Path("/bin/true"), symbols=shipped / "prog.pdb"))
