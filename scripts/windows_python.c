/* python.exe: what CPython's own Programs/python.c does, without needing its import library. */
#include <stdio.h>
#include <wchar.h>
#include <windows.h>

typedef int (*start)(int, wchar_t **);

int wmain(int argc, wchar_t **argv) {
  HMODULE python = LoadLibraryW(L"python311.dll");
  start Py_Main = python ? (start)(void *)GetProcAddress(python, "Py_Main") : NULL;
  if (!Py_Main) {
    fprintf(stderr, "python311.dll cannot be loaded: error %lu\n", GetLastError());
    return 127;
  }
  return Py_Main(argc, argv);
}
