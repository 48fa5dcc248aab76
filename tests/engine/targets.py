"""Small programs for the engine's own tests."""

from __future__ import annotations

ANSWER = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
__attribute__((noinline)) int answer(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
__attribute__((noinline)) int other(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 10; }
static volatile int spin;
static void *run(void *p) { struct timespec t = {0, 200000}; for (;;) { answer(1); other(1); if (!spin) nanosleep(&t,
0); } return p; } int main(int argc, char **argv) {
  char line[64];
  setvbuf(stdout, NULL, _IOLBF, 0);
  spin = argc > 2;
  for (int i = 1; i < (argc > 1 ? atoi(argv[1]) : 1); i++) { pthread_t t; pthread_create(&t, NULL, run, NULL); }
  puts("ready");
  while (fgets(line, sizeof line, stdin)) printf("%d %d\n", answer(1), other(1));
  return 0;
}
"""
