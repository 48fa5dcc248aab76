"""Rules of the repository that no other tool checks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "midflight"
STANDARD_LIBRARY_ALONE = ("engine", "image", "machine", "patch", "process")
MAY_IMPORT_MORE = {"patch/signature.py": {"cryptography", "securesystemslib"}}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("room", STANDARD_LIBRARY_ALONE)
def test_rooms_that_run_everywhere_import_the_standard_library_alone(room: str) -> None:
    """import-linter can only forbid libraries by name; here every other one is found."""
    files = sorted((SOURCES / room).rglob("*.py"))
    assert files
    for path in files:
        allowed = sys.stdlib_module_names | {"midflight"} | MAY_IMPORT_MORE.get(str(path.relative_to(SOURCES)), set())
        assert set(imported(ast.parse(path.read_text()))) <= allowed, path


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_lock_files_pin_by_hash_and_name_no_index() -> None:
    for name in ("requirements.lock", "scripts/uv.lock"):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|--index|--extra|--find-links|@ ", text), name
        packages = re.findall(r"^[\w.-]+==.*(?:\n .*)*", text, re.MULTILINE)
        assert packages
        assert all("--hash=sha256:" in package for package in packages), name


def test_the_lock_file_has_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {re.split(r"[<>=!~; \[]", name)[0] for name in wanted} <= locked


def test_modules_say_what_they_are_for() -> None:
    for path in SOURCES.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), path


def test_no_file_is_longer_than_a_person_reads() -> None:
    for path in SOURCES.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 550, path


def test_no_binaries_are_checked_in() -> None:
    for path in tracked():
        if path.is_file():
            assert b"\0" not in path.read_bytes(), path


def test_a_test_that_cannot_run_fails(tmp_path: Path) -> None:
    """The rule in tests/conftest.py, on a test run of its own."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_runs(): pass\n\ndef test_skips(): pytest.skip('no compiler')\n\n"
        "@pytest.mark.skip\ndef test_is_marked(): pass\n"
    )
    (tmp_path / "test_absent.py").write_text("import pytest\n\npytest.importorskip('no_such_module')\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
    ]
    done = subprocess.run([*command, "."], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 failed, 1 passed, 2 errors" in done.stdout
    assert "did not run: no compiler" in done.stdout


def test_an_agent_without_a_server_loads_nothing_of_the_fleet(tmp_path: Path) -> None:
    """It is to be small, and to run where those libraries are not (tests/wine)."""
    code = (
        "import sys, midflight.cli.agent, midflight.agent.agent, midflight.agent.folder, midflight.agent.state\n"
        "from midflight.cli.agent_server import enrolled_here\n"
        "assert enrolled_here() is None\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tuf', 'requests', 'urllib3', 'sqlalchemy')])\n"
    )
    environment = {**os.environ, "MIDFLIGHT_STATE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
