"""The whole forge, from a source tree and a fix to the contents of a hotpatch, or to a refusal with all its reasons."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from midflight.errors import ForgeError, InputError
from midflight.forge.forge import ForgeRequest, ForgeResult, RefusedWithFindings, forge
from midflight.forge.model import Finding
from midflight.patch.validate import validate_manifest

SOURCE = {
    "Makefile": "CFLAGS = -O2 -g\nprog: main.o part.o\n\tgcc -Wl,--build-id $^ -o $@\nclean:\n\trm -f prog *.o\n",
    "part.h": "struct item { int a; int b; };\nint part(struct item *item);\n",
    "part.c": (
        '#include "part.h"\n#include <stdio.h>\n#include <stdlib.h>\nint limit = 10;\n'
        "static __attribute__((noinline)) int deep(int x) { return x * 3; }\n"
        "int part(struct item *item) {\n  if (item->a > limit) abort();\n"
        '  printf("%d\\n", item->b);\n  return deep(item->a);\n}\n'
    ),
    "main.c": (
        '#include "part.h"\n#include <stdlib.h>\n'
        "int main(int argc, char **argv) { struct item *i = calloc(1, sizeof *i); i->a = argc; return part(i); }\n"
    ),
}


def tree(folder: Path, changes: dict[str, tuple[str, str]] | None = None) -> Path:
    folder.mkdir()
    for name, text in SOURCE.items():
        for file, (old, new) in (changes or {}).items():
            if file == name:
                assert old in text
                text = text.replace(old, new)
        (folder / name).write_text(text)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    return folder


def request(tmp_path: Path, changes: dict[str, tuple[str, str]], **more: object) -> ForgeRequest:
    if not (tmp_path / "source").exists():
        tree(tmp_path / "source")
    fix = tmp_path / f"fix{len(list(tmp_path.glob('fix*')))}"
    tree(fix, changes)
    return ForgeRequest(tmp_path / "source", fix, "make", "prog", tmp_path / "work", **more)  # type: ignore[arg-type]


def refused(asked: ForgeRequest) -> tuple[Finding, ...]:
    with pytest.raises(RefusedWithFindings) as caught:
        forge(asked)
    assert caught.value.exit_status == 3
    assert "\n" not in str(caught.value)
    return caught.value.findings


CHECK = {"part.c": ("if (item->a > limit)", "if (item->a < 0 || item->a > limit)")}
LIMIT = {"part.c": ("int limit = 10;", "int limit = 11;")}


def test_a_fix_becomes_a_manifest_and_a_payload(tmp_path: Path) -> None:
    lines: list[str] = []
    asked = request(tmp_path, CHECK, name="series", sequence=4, description="Checks.", cves=("CVE-2026-1",))
    result = forge(asked, lines.append)
    validate_manifest(result.manifest)
    target = result.manifest.targets[0]
    assert [function.name for function in target.functions] == ["part"]
    assert (result.manifest.name, result.manifest.sequence) == ("series", 4)
    assert list(result.payloads) == [target.payload]
    assert len(result.payloads[target.payload]) == target.payload_size
    assert result.report["functions"][0]["file"] == "part.c"
    assert result.report["objects"] == {"linked": 2, "changed": 1, "files": ["part.c"]}
    assert not target.imports, "everything that the fix needs is in the image already"
    assert any("match" in line for line in lines)


def test_the_same_inputs_give_the_same_bytes_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    tree(tmp_path / "other")
    subprocess.run(["make", "-C", tmp_path / "other"], check=True, capture_output=True)
    results: list[ForgeResult] = []
    for name in ("one", "another-and-longer", "one"):
        (tmp_path / name).mkdir(exist_ok=True)
        results.append(forge(request(tmp_path / name, CHECK, running=tmp_path / "other" / "prog")))
    one, other, again = results
    assert one.manifest.created == "2023-11-14T22:13:20Z"
    assert one.manifest == other.manifest == again.manifest
    assert one.payloads == other.payloads == again.payloads


def test_all_findings_are_told_at_once(tmp_path: Path) -> None:
    changes = {
        "part.c": ("int limit = 10;", "int limit = 11; static __thread int fresh; int count(void) { return ++fresh; }"),
        "part.h": ("int b; };", "int b; int c; };"),
    }
    changes["main.c"] = ("i->a = argc", "i->a = argc + sizeof *i")
    findings = refused(request(tmp_path, changes))
    assert {"MF110", "MF111", "MF113"} <= {item.code for item in findings}
    assert {item.file for item in findings} <= {"part.c", "main.c"}


def test_an_override_needs_a_reason_and_goes_into_the_manifest(tmp_path: Path) -> None:
    changes = {"part.c": ("int limit = 10;", "int limit = 11; "), "main.c": ("i->a = argc", "i->a = argc")}
    with pytest.raises(InputError, match="written reason"):
        forge(request(tmp_path, changes, overrides={("MF110", "limit"): " "}))
    assert [(item.code, item.symbol) for item in refused(request(tmp_path, changes))] == [("MF110", "limit")]
    body = "x * 3; }"
    both = request(tmp_path, {"part.c": (body, "x * 4; }")}, overrides={("MF110", "limit"): "the hook sets it"})
    text = (both.fix / "part.c").read_text()
    (both.fix / "part.c").write_text(text.replace("int limit = 10;", "int limit = 11;"))
    result = forge(both)
    override = result.manifest.targets[0].overrides[0]
    assert (override.code, override.file, override.symbol) == ("MF110", "part.c", "limit")
    assert override.reason == "the hook sets it"
    assert "0x0a to 0x0b" in override.finding or "initial value" in override.finding


def test_an_override_of_nothing_is_refused(tmp_path: Path) -> None:
    findings = refused(request(tmp_path, CHECK, overrides={("MF110", "limit"): "not needed"}))
    assert [item.code for item in findings] == ["MF162"]


def test_a_comment_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises((RefusedWithFindings, ForgeError), match=r"MF160|changes no"):
        forge(request(tmp_path, {"part.c": ("int limit = 10;", "int limit = 10; /* ten */")}))


def test_a_running_binary_from_another_source_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "other", {"part.c": ("item->b", "item->a")})
    subprocess.run(["make", "-C", tmp_path / "other"], check=True, capture_output=True)
    findings = refused(request(tmp_path, CHECK, running=tmp_path / "other" / "prog"))
    assert ("MF130", "part.c", "part") in {(item.code, item.file, item.symbol) for item in findings}


def test_a_stripped_running_binary_can_be_patched(tmp_path: Path) -> None:
    tree(tmp_path / "other")
    subprocess.run(["make", "-C", tmp_path / "other"], check=True, capture_output=True)
    subprocess.run(["strip", tmp_path / "other" / "prog"], check=True)
    result = forge(request(tmp_path, CHECK, running=tmp_path / "other" / "prog"))
    assert [function.name for function in result.manifest.targets[0].functions] == ["part"]


def test_an_image_without_build_id_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "other")
    (tmp_path / "other" / "Makefile").write_text(SOURCE["Makefile"].replace("--build-id", "--build-id=none"))
    subprocess.run(["make", "-C", tmp_path / "other"], check=True, capture_output=True)
    findings = refused(request(tmp_path, CHECK, running=tmp_path / "other" / "prog"))
    assert [item.code for item in findings] == ["MF161"]


def test_the_entry_policy_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reviewer's reason"):
        forge(request(tmp_path, CHECK, policy="entry"))
