/* Uses the library: linked to it, and (with an argument) loaded by dlopen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int (*tls)(void), (*data)(int);
static const char *(*name)(void);
static void *thread(void *p) { *(int *)p = tls(); return p; }
__attribute__((noinline)) int own(int n) { __asm__ volatile("" : "+r"(n)); return n @{+ 1@|+ 2@}; }
int main(int argc, char **argv) {
  char line[64];
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return puts(dlerror()), 1;
  tls = (int (*)(void))dlsym(library, "tls"), data = (int (*)(int))dlsym(library, "data");
  name = (const char *(*)(void))dlsym(library, "name");
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    int there = 0;
    pthread_t t;
    if (!strcmp(line, "tls")) {
      pthread_create(&t, NULL, thread, &there), pthread_join(t, NULL);
      printf("%d %d\n", tls(), there);
    } else if (!strcmp(line, "data")) printf("%d %d\n", data(0), own(0));
    else puts(name());
  }
  return 0;
}
