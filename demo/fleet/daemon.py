"""``webd``, a small web server with a real hole, its fix, a careless second fix, and the release with the fix built in.

A name that is longer than its field runs into the next one, and makes whoever asks an administrator: an overflow
inside a structure, which no compiler flag notices.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from midflight.image.elf import ElfFile

NAME = "webd"
CVE = "CVE-2026-99001"
PORT = 8080
EXPLOIT = "/hello?name=AAAAAAAAAAAAAAAAadmin"
HARMLESS = "/hello?name=ada"
GREETING = "hello ada, you are guest"
SECRET = "the secret is 42"
MAKE = "cc -O2 -g -pthread -o webd webd.c"

SOURCE = r"""
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct visit {
  char name[16];
  char role[16];
};

/* Answer /hello?name=...: whom we greet, and as what. */
__attribute__((noinline)) static int greet(const char *name, char *out, size_t room) {
  struct visit visit;
  const size_t most = sizeof visit - 1;
  char *to = (char *)&visit;
  size_t length = 0;
  memset(&visit, 0, sizeof visit);
  strcpy(visit.role, "guest");
  while (length < most && name[length] && name[length] != ' ') {
    to[length] = name[length];
    length++;
  }
  return snprintf(out, room, "hello %.16s, you are %.16s%s\n", visit.name, visit.role,
                  strcmp(visit.role, "admin") ? "" : "; the secret is 42");
}

/* Whether we are well: there is room for another connection. */
__attribute__((noinline)) static int health(void) {
  int one = dup(0);
  if (one >= 0) close(one);
  return one >= 0 && one < 1000 ? 200 : 503;
}

static void answer(int peer) {
  char request[1024], body[256], head[256];
  size_t have = 0;
  int status = 200, length = 0;
  ssize_t got;
  while (have < sizeof request - 1 && (got = read(peer, request + have, sizeof request - 1 - have)) > 0) {
    have += (size_t)got;
    request[have] = 0;
    if (strstr(request, "\r\n\r\n")) break;
  }
  request[have] = 0;
  if (!strncmp(request, "GET /hello?name=", 16)) length = greet(request + 16, body, sizeof body);
  else if (!strncmp(request, "GET /health", 11)) length = snprintf(body, sizeof body, "%d\n", status = health());
  else length = snprintf(body, sizeof body, "no such page\n"), status = 404;
  int size = snprintf(head, sizeof head, "HTTP/1.0 %d x\r\nServer: webd/1.0\r\nContent-Length: %d\r\n\r\n",
                      status, length);
  if (write(peer, head, (size_t)size) == size) (void)!write(peer, body, (size_t)length);
  shutdown(peer, SHUT_WR);
  close(peer);
}

static void *serve(void *listener) {
  for (;;) {
    int peer = accept(*(int *)listener, NULL, NULL);
    if (peer >= 0) answer(peer);
  }
}

int main(int argc, char **argv) {
  static int listener;
  int yes = 1;
  pthread_t thread;
  int port = atoi(argc > 1 ? argv[1] : "8080");
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  signal(SIGPIPE, SIG_IGN);
  listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 512)) { perror("webd"); return 1; }
  for (int i = 0; i < 3; i++) pthread_create(&thread, NULL, serve, &listener);
  serve(&listener);
}
"""
FIX = ("most = sizeof visit - 1", "most = sizeof visit.name - 1")
CARELESS = ("one < 1000 ? 200", "one > 1000 ? 200")
"""What the second hotpatch brings besides the fix: a condition turned round, so that a well server says it is not."""
RELEASE = ("webd/1.0", "webd/1.1")


def changed(*edits: tuple[str, str]) -> str:
    """The source, changed."""
    text = SOURCE
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def build_id(path: Path) -> str:
    """The identity of a program."""
    with ElfFile.open(path) as elf:
        return elf.build_id or ""


@dataclass(frozen=True)
class Builds:
    """What the vendor of webd has: the program, its hotpatches, the next release, and a key that signs hotpatches."""

    program: Path
    fix: Path
    careless: Path
    release: Path
    key: Path
    """The public one."""


def run_midflight(*words: str | Path) -> dict[str, object]:
    """A ``midflight`` command; returns its JSON.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "midflight", *map(str, words), "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"midflight {' '.join(map(str, words))}: {done.stderr.strip() or done.stdout}")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def build(folder: Path) -> Builds:
    """Build all of it (seconds)."""
    trees = {
        "vulnerable": changed(),
        "running": changed(),
        "fixed": changed(FIX),
        "careless": changed(FIX, CARELESS),
        "release": changed(FIX, RELEASE),
    }
    for name, text in trees.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "webd.c").write_text(text)
    for name in ("running", "release"):
        subprocess.run(["sh", "-ec", MAKE], cwd=folder / name, check=True, capture_output=True)
    run_midflight("keygen", folder / "vendor")
    made = []
    for sequence, name in enumerate(("fixed", "careless"), 1):
        made.append(folder / f"webd-{sequence}.hotpatch")
        run_midflight(
            *("build", "--source", folder / "vulnerable", "--fix", folder / name, "--make", MAKE, "--image", NAME),
            *("--running", folder / "running" / NAME, "--name", NAME, "--sequence", str(sequence)),
            *("--cve", CVE, "--key", folder / "vendor.key", "--cache", folder / "cache", "-o", made[-1]),
        )
    return Builds(folder / "running" / NAME, made[0], made[1], folder / "release" / NAME, folder / "vendor.pub")
