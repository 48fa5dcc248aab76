/* Cost of a call: times a loop of calls and prints picoseconds a call. usage: calls ; a line in: one measurement. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>

__attribute__((noinline)) int answer(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + ANSWER;
}

int main(void) {
  char line[64];
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    struct timespec a, b;
    int sum = 0;
    const int rounds = 20000000;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < rounds; i++) sum += answer(i);
    clock_gettime(CLOCK_MONOTONIC, &b);
    int64_t ns = (b.tv_sec - a.tv_sec) * 1000000000ll + (b.tv_nsec - a.tv_nsec);
    printf("%d %lld\n", sum / rounds, (long long)(ns * 1000 / rounds));
  }
  return 0;
}
