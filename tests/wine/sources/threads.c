/* Threads that work in two functions and know when they were disturbed. Arguments: threads, "hot" (never sleep)
   or else, milliseconds until it exits.
   A line in: "answer other errors" out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#ifndef HOT
#define HOT
#endif

static volatile LONG errors;
static int hot, nap = 1;

HOT __attribute__((noinline)) int answer(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + 1;
}

HOT __attribute__((noinline)) int other(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + 10;
}

static void work(void) {
  int a = answer(1), b = other(1);
  if ((a < 1 || a > 3) || (b != 10 && b != 20)) InterlockedIncrement(&errors);
}

static DWORD WINAPI sleeps(void *unused) {
  for (;;) {
    work();
    if (!hot) Sleep(nap);
  }
  return 0;
}

static DWORD WINAPI waits(void *unused) {
  HANDLE event = CreateEventA(NULL, TRUE, FALSE, NULL);
  for (;;) {
    work();
    if (!hot && WaitForSingleObject(event, nap) != WAIT_TIMEOUT) InterlockedIncrement(&errors);
  }
  return 0;
}

static DWORD WINAPI computes(void *unused) {
  /* Values that live in vector registers, checked for ever. */
  for (unsigned long long n = 1;; n++) {
    unsigned long long in[2] = {n * 0x9e3779b97f4a7c15ull, ~n}, out[2];
    __asm__ volatile(
        "movdqu %[in], %%xmm7\n movdqa %%xmm7, %%xmm15\n mov $2000, %%ecx\n 1: dec %%ecx\n jnz 1b\n movdqu %%xmm15, %[out]\n"
        : [out] "=m"(out)
        : [in] "m"(in)
        : "ecx", "xmm7", "xmm15", "memory");
    if (memcmp(in, out, sizeof out)) InterlockedIncrement(&errors);
    if (n % 64 == 0) {
      work();
      if (!hot) Sleep(nap);
    }
  }
  return 0;
}

int main(int argc, char **argv) {
  LPTHREAD_START_ROUTINE all[] = {sleeps, waits, computes};
  char line[64];
  setvbuf(stdout, NULL, _IONBF, 0);
  hot = argc > 2 && !strcmp(argv[2], "hot");
  /* Many threads are to be many, not to keep two processors and the server of Wine busy. */
  if (argc > 1) nap += atoi(argv[1]) / 8;
  for (int i = 0; i < (argc > 1 ? atoi(argv[1]) : 0); i++)
    if (!CreateThread(NULL, 1 << 16, all[i % 3], NULL, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL)) return 1;
  puts("ready");
  if (argc > 3) {
    Sleep(atoi(argv[3]));
    ExitProcess(7);
  }
  while (fgets(line, sizeof line, stdin)) printf("%d %d %ld\n", answer(1), other(1), errors);
  return 0;
}
