/* A fiber that waits in the middle of a function, on a stack that no thread is on. A line in: "e" lets it finish. */
#include <stdio.h>
#include <windows.h>

static void *home, *other;
static int result;

__attribute__((noipa)) int parked(int x) {
  SwitchToFiber(home);
  return x;
}

static void CALLBACK run(void *unused) {
  for (;;) {
    result = parked(1);
    SwitchToFiber(home);
  }
}

int main(void) {
  char line[64];
  setvbuf(stdout, NULL, _IONBF, 0);
  home = ConvertThreadToFiber(NULL);
  other = CreateFiber(1 << 16, run, NULL);
  SwitchToFiber(other);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'e') SwitchToFiber(other);
    printf("%d\n", result);
  }
  return 0;
}
