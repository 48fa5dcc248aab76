// A DLL in C++ whose functions throw through each other; core2.cpp is its second version.
#include <stdio.h>
#include <windows.h>
#include <stdexcept>
#include <string>

#define EXPORT extern "C" __declspec(dllexport)

static volatile LONG wrong;

// Replaced. The first version takes any length.
EXPORT __attribute__((noinline)) int parse(const char *text, int length) {
  std::string copy(text, 4);
  if (length < 0) throw std::invalid_argument("negative");
  return length + (int)(copy.size() - 4);
}

// Replaced. Catches what parse throws, and throws something else.
EXPORT __attribute__((noinline)) int guarded(int length) {
  try {
    return parse("abcd", length);
  } catch (const std::invalid_argument &) {
    throw std::runtime_error("old");
  }
}

// Not replaced: what is thrown goes through it, and its registers must come through unharmed.
static __attribute__((noinline)) int through(int length) {
  std::string alive("still here, and too long for the small string");
  volatile int a = length + 1, b = length + 2, c = length + 3;
  int result = guarded(length);
  if (a + b + c != 3 * length + 6 || alive.size() != 45) InterlockedIncrement(&wrong);
  return result;
}

static int classify(int length) {
  volatile int before = length;
  try {
    int r = through(length);
    if (before != length) InterlockedIncrement(&wrong);
    return r;
  } catch (const std::runtime_error &error) {
    if (before != length) InterlockedIncrement(&wrong);
    return std::string("old") == error.what() ? -1 : std::string("new") == error.what() ? -2 : -3;
  }
}

static DWORD WINAPI worker(void *) {
  for (int i = 0;; i++) {
    int good = classify(1000), bad = classify(-5);
    if ((good != 1000 && good != 16) || (bad != -1 && bad != -2)) InterlockedIncrement(&wrong);
    if (i % 16 == 0) Sleep(1);
  }
  return 0;
}

EXPORT int serve(int threads) {
  char line[64];
  setvbuf(stdout, NULL, _IONBF, 0);
  for (int i = 0; i < threads; i++)
    if (!CreateThread(NULL, 0, worker, NULL, 0, NULL)) return 1;
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    int good = classify(1000), bad = classify(-5);
    printf("%d %d %ld\n", good, bad, wrong);
  }
  return 0;
}
