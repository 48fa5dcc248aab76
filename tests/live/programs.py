"""Targets that know when they were disturbed: every system call and every register that is not as it must be is
counted."""

from __future__ import annotations

SENSITIVE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <execinfo.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
static _Atomic long errors, rounds;
__attribute__((noinline)) int answer(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 1; }
__attribute__((noinline)) int other(int x) { __asm__ volatile("" : "+r"(x)); return x * 0 + 10; }
static void work(void) {
  int a = answer(1), b = other(1);
  if ((a != 1 && a != 2 && a != 3) || (b != 10 && b != 20)) errors++;
  rounds++;
}
static void *sleeps(void *p) {
  for (struct timespec t = {0, 300000}; ; work()) if (nanosleep(&t, NULL)) errors++;
  return p;
}
static void *polls(void *p) {
  int pipes[2];
  if (pipe(pipes)) abort();
  struct pollfd f = {pipes[0], POLLIN, 0};
  for (;; work()) if (poll(&f, 1, 2)) errors++;
  return p;
}
static void *epolls(void *p) {
  int e = epoll_create1(0);
  struct epoll_event v;
  for (;; work()) if (epoll_wait(e, &v, 1, 2)) errors++;
  return p;
}
static void *waits(void *p) {
  pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t c = PTHREAD_COND_INITIALIZER;
  pthread_mutex_lock(&m);
  for (;; work()) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 1000000;
    if (t.tv_nsec >= 1000000000) { t.tv_nsec -= 1000000000; t.tv_sec++; }
    if (pthread_cond_timedwait(&c, &m, &t) != ETIMEDOUT) errors++;
  }
  return p;
}
static void *computes(void *p) {
  /* Values that live in vector registers and the red zone, checked for ever. */
  for (unsigned long n = 1;; n++) {
    unsigned long out[2], in[2] = {n * 0x9e3779b97f4a7c15ul, ~n}, zone;
    __asm__ volatile(
        "movdqu %[in], %%xmm7\n movdqa %%xmm7, %%xmm15\n mov %[n], -64(%%rsp)\n mov $2000, %%ecx\n"
        "1: dec %%ecx\n jnz 1b\n"
        "movdqu %%xmm15, %[out]\n mov -64(%%rsp), %[zone]\n"
        : [out] "=m"(out), [zone] "=&r"(zone) : [in] "m"(in), [n] "r"(n) : "ecx", "xmm7", "xmm15", "memory");
    if (memcmp(out, in, sizeof out) || zone != n) errors++;
    if (n % 64 == 0) { work(); struct timespec t = {0, 100000}; nanosleep(&t, NULL); }
  }
  return p;
}
int main(int argc, char **argv) {
  void *(*all[])(void *) = {sleeps, polls, epolls, waits, computes};
  char line[64];
  void *frames[4];
  setvbuf(stdout, NULL, _IOLBF, 0);
  backtrace(frames, 4); /* loads the unwinder */
  for (int i = 0; i < (argc > 1 ? atoi(argv[1]) : 0); i++) {
    pthread_t t;
    if (pthread_create(&t, NULL, all[i % 5], NULL)) return 1;
  }
  puts("ready");
  while (fgets(line, sizeof line, stdin)) printf("%d %d %ld %ld\n", answer(1), other(1), (long)errors, (long)rounds);
  return 0;
}
"""
"""A line in: "answer other errors rounds". Argument: how many threads besides the main one."""
