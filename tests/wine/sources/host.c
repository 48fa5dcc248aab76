/* Loads core.dll; with a second argument, after somebody else has taken the place that its linker preferred. */
#include <stdio.h>
#include <stdlib.h>
#include <windows.h>

int main(int argc, char **argv) {
  if (argc > 2 && !VirtualAlloc((void *)strtoull(argv[2], NULL, 16), 65536, MEM_RESERVE, PAGE_NOACCESS)) return 2;
  HMODULE library = LoadLibraryA("core.dll");
  int (*serve)(int) = library ? (int (*)(int))(void *)GetProcAddress(library, "serve") : NULL;
  return serve ? serve(atoi(argv[1])) : 1;
}
