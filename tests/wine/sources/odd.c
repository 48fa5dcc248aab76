/* Functions that are hard to patch. A line in: "t" asks tiny; "e" ends forever; "tiny forever inside" out. */
#include <stdio.h>
#include <windows.h>

static volatile LONG stay = 1, inside;

/* Too short for a jump of five bytes: the padding behind it takes that. */
__attribute__((noipa)) int tiny(int x) { return x; }

/* One thread stays in it until it is told to leave. */
__attribute__((noipa)) int forever(int x) {
  while (stay) Sleep(1);
  return x;
}

__attribute__((noipa)) static void caller(void) {
  inside = 1;
  forever(1);
  inside = 0;
}

static DWORD WINAPI stays(void *unused) {
  caller();
  for (;;) Sleep(1000);
  return 0;
}

static DWORD WINAPI asks(void *unused) {
  for (;;)
    for (int i = 0; i < 1000; i++) {

      int r = tiny(i);
      if (r != i && r != i + 1) ExitProcess(9);
    }
  return 0;
}

int main(void) {
  char line[64];
  setvbuf(stdout, NULL, _IONBF, 0);
  CreateThread(NULL, 0, stays, NULL, 0, NULL);
  CreateThread(NULL, 0, asks, NULL, 0, NULL);
  while (!inside) Sleep(1);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    if (*line == 'e') {
      stay = 0;
      while (inside) Sleep(1);
    }
    printf("%d %d %ld\n", tiny(5), stay ? 0 : forever(1), inside);
  }
  return 0;
}
