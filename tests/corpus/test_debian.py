"""The whole way with a package as Debian ships it: built by its own rules, matched with the stripped library, live."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from midflight.forge.packages.debian import Debian

pytestmark = [pytest.mark.corpus, pytest.mark.quick, pytest.mark.timeout(900)]

MIDFLIGHT = Path(sys.executable).with_name("midflight")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "packages"
PACKAGE = "libcjson1"
# An invented fix: it must fit whatever security fixes the package has by now, and show in what a process prints.
PATCH = """\
--- a/cJSON.c
+++ b/cJSON.c
@@ -121,7 +121,7 @@
 CJSON_PUBLIC(const char*) cJSON_Version(void)
 {
     static char version[15];
-    sprintf(version, "%i.%i.%i", CJSON_VERSION_MAJOR, CJSON_VERSION_MINOR, CJSON_VERSION_PATCH);
+    sprintf(version, "%i.%i.%i fixed", CJSON_VERSION_MAJOR, CJSON_VERSION_MINOR, CJSON_VERSION_PATCH);
 
     return version;
 }
"""  # noqa: W293
HOST = """\
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    void *library = dlopen(argv[1], RTLD_NOW);
    const char *(*version)(void) = library ? (const char *(*)(void))dlsym(library, "cJSON_Version") : 0;
    char line[16];
    if (!version)
        return 1;
    while (puts(version()) && !fflush(stdout) && fgets(line, sizeof line, stdin))
        ;
    return 0;
}
"""


def test_a_library_of_debian_is_patched_in_running_processes(tmp_path: Path) -> None:
    front = Debian(CACHE / "packages", lambda line: print(line, file=sys.stderr))
    (library,) = [item.file for item in front.shipped(front.resolve(PACKAGE, None)) if "libcjson.so" in item.name]
    before = library.read_bytes()
    (tmp_path / "fix.patch").write_text(PATCH)
    (tmp_path / "host.c").write_text(HOST)
    subprocess.run(["gcc", "-o", "host", "host.c", "-ldl"], cwd=tmp_path, check=True)
    environment = {**os.environ, "MIDFLIGHT_CONFIG": str(tmp_path / "config")}

    def midflight(*words: object) -> str:
        done = subprocess.run(
            [MIDFLIGHT, *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # Two processes, one of them in a mount namespace of its own, as in a container.
    starts = [[], ["unshare", "--mount", "--propagation", "private"]]
    processes = [
        subprocess.Popen([*words, tmp_path / "host", library], stdin=-1, stdout=-1, text=True) for words in starts
    ]
    try:

        def answers() -> list[str]:
            found = []
            for process in processes:
                assert process.stdin is not None and process.stdout is not None
                found.append(process.stdout.readline().strip())
                process.stdin.write("again\n")
                process.stdin.flush()
            return found

        plain = answers()
        words = ("--debian", PACKAGE, "--fix", "fix.patch", "--cache", CACHE)
        assessed = json.loads(midflight("assess", *words, "--html", "page.html", "--json"))
        assert assessed["verdict"] == "patchable"
        assert [f["name"] for image in assessed["images"] for f in image["functions"]] == ["cJSON_Version"]
        assert "cJSON_Version" in (tmp_path / "page.html").read_text()
        said = midflight("build", *words, "-o", "fix.hotpatch")
        assert "cJSON_Version" in said and str(tmp_path / "config" / "signing.key") in said
        assert answers() == plain
        # The two commands of the user guide: without a key, without --trust.
        applied = json.loads(midflight("apply", "fix.hotpatch", "--all", "--json"))
        assert {p["pid"] for p in applied["processes"]} == {process.pid for process in processes}
        answers()  # what was asked for before
        assert answers() == [f"{text} fixed" for text in plain]
        midflight("revert", "--name", "cjson", *(word for p in processes for word in ("--pid", p.pid)))
        answers()
        assert answers() == plain
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert library.read_bytes() == before
