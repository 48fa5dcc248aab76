/* N threads that call one function over and over, and know how long nobody of them made progress.
   usage: threads N paced|busy ; a line in: prints "value longest_pause_ns calls" and starts to measure anew. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <time.h>

static _Atomic uint64_t last, longest, calls;
static struct timespec rest = {0, 500000};
static int busy;

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((noinline)) int answer(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + ANSWER;
}

static void progress(void) {
  uint64_t at = now(), before = atomic_exchange(&last, at), gap = at > before ? at - before : 0;
  uint64_t known = atomic_load(&longest);
  while (gap > known && !atomic_compare_exchange_weak(&longest, &known, gap)) {
  }
}

static void *run(void *unused) {
  (void)unused;
  for (;;) {
    for (int i = 0; i < 100; i++) answer(i);
    atomic_fetch_add(&calls, 100);
    progress();
    if (!busy) nanosleep(&rest, NULL);
  }
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int threads = atoi(argv[1]);
  busy = !strcmp(argv[2], "busy");
  /* Paced threads rest so long that very many of them leave the machine idle time, as servers' threads do. */
  if (threads > 128) rest.tv_nsec = 50000000;
  setvbuf(stdout, NULL, _IOLBF, 0);
  atomic_store(&last, now());
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 128 * 1024);
  for (int i = 1; i < threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, run, NULL)) return 1;
  }
  if (threads > 1) {
    puts("ready");
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
      printf("%d %llu %llu\n", answer(1), (unsigned long long)atomic_exchange(&longest, 0),
             (unsigned long long)atomic_load(&calls));
    }
    return 0;
  }
  /* One thread alone answers and works in turn: questions are looked for between rounds. */
  puts("ready");
  for (;;) {
      for (int i = 0; i < 100; i++) answer(i);
    atomic_fetch_add(&calls, 100);
    progress();
    if (!busy) nanosleep(&rest, NULL);
    static int polled;
    if (!busy || ++polled % 1000 == 0) {
      fd_set set;
      struct timeval zero = {0, 0};
      FD_ZERO(&set);
      FD_SET(0, &set);
      if (select(1, &set, NULL, NULL, &zero) > 0) {
        char line[64];
        if (!fgets(line, sizeof line, stdin)) return 0;
        printf("%d %llu %llu\n", answer(1), (unsigned long long)atomic_exchange(&longest, 0),
               (unsigned long long)atomic_load(&calls));
      }
    }
  }
}
