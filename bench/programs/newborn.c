/* "newborn start RATE COUNT": starts itself COUNT times, RATE times a second. Each child prints how long after its exec
   its function was patched, in microseconds, and ends; -1 when that was not within five seconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline)) int answer(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + ANSWER;
}

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int born(const char *text) {
  long long begin = atoll(text), first = now();
  char line[32];
  /* Looks often at first; many that wait for long must not be the load that they wait for. */
  while (answer(1) == 1 && now() - first < 5000000000ll)
    nanosleep(&(struct timespec){0, now() - first < 30000000 ? 200000 : 5000000}, NULL);
  int size = sprintf(line, "%lld\n", answer(1) == 1 ? -1 : (now() - begin) / 1000);
  int failed = write(1, line, size) != size;
  if (begin > first) pause(); /* one of a crowd that stays */
  return failed;
}

int main(int argc, char **argv) {
  if (argc == 2) return born(argv[1]);
  if (argc != 4) return 2;
  int rate = atoi(argv[2]), count = atoi(argv[3]);
  long long next = now();
  for (int i = 0; i < count; i++, next += 1000000000ll / rate) {
    long long wait = next - now();
    if (wait > 0) nanosleep(&(struct timespec){wait / 1000000000, wait % 1000000000}, NULL);
    if (!vfork()) {
      char text[32];
      sprintf(text, "%lld", now());
      execl(argv[0], argv[0], text, NULL);
      _exit(127);
    }
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
  }
  while (wait(NULL) > 0) {}
  return 0;
}
