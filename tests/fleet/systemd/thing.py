"""``thing``, the service that is repaired: says a word to whoever connects, listens where it is told or on the socket
that systemd hands it (sd_listen_fds(3)); its fix, and the package it comes in."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.commands import midflight

SOURCE = r"""
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

__attribute__((noinline)) int word(char *to) {
  strcpy(to, "hole");
  return (int)strlen(to);
}

int main(int argc, char **argv) {
  char text[64];
  int listener = 3, yes = 1;
  if (!getenv("LISTEN_FDS")) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[argc - 1]))};
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8)) return 1;
  }
  for (;;) {
    int peer = accept(listener, NULL, NULL);
    if (peer < 0) continue;
    int size = word(text);
    if (write(peer, text, (size_t)size) != size) return 2;
    close(peer);
  }
}
"""
FIX = ('"hole"', '"mended"')
MAKE = "cc -O2 -g -o thing thing.c"
PLACE = "/usr/sbin/thing"


@dataclass(frozen=True)
class Things:
    """What the vendor of thing has."""

    program: Path
    hotpatch: Path
    release: Path
    old_package: Path
    new_package: Path
    key: Path
    """The public one."""


def build(folder: Path) -> Things:
    """Build all of it (seconds)."""
    release = SOURCE.replace(*FIX) + 'const char version[] = "2";\n'
    for name, text in {"old": SOURCE, "running": SOURCE, "fixed": SOURCE.replace(*FIX), "release": release}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "thing.c").write_text(text)
    for name in ("running", "release"):
        subprocess.run(["sh", "-ec", MAKE], cwd=folder / name, check=True, capture_output=True)
    midflight("keygen", folder / "vendor")
    hotpatch = folder / "thing-1.hotpatch"
    midflight(
        *("build", "--source", folder / "old", "--fix", folder / "fixed", "--make", MAKE, "--image", "thing"),
        *("--running", folder / "running" / "thing", "--name", "thing", "--sequence", "1"),
        *("--key", folder / "vendor.key", "--cache", folder / "cache", "-o", hotpatch),
    )
    programs = folder / "running" / "thing", folder / "release" / "thing"
    old, new = package(folder, "1.0", programs[0]), package(folder, "2.0", programs[1])
    return Things(programs[0], hotpatch, programs[1], old, new, folder / "vendor.pub")


def package(folder: Path, version: str, program: Path) -> Path:
    """A Debian package of it, that leaves its service alone, as an upgrade at night does."""
    tree = folder / f"package-{version}"
    place = tree / PLACE[1:]
    place.parent.mkdir(parents=True)
    place.write_bytes(program.read_bytes())
    place.chmod(0o755)
    (tree / "DEBIAN").mkdir(mode=0o755)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: thing\nVersion: {version}\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\n"
        "Description: says a word\n"
    )
    made = folder / f"thing_{version}_amd64.deb"
    command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made
