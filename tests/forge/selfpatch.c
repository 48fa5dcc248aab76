/* Applies a linked payload to the very program that it runs in: an independent reading of what the forge's output means.
   The plan is text, made by selfpatching.py. No stack check, no undoing: tests call it while nothing else runs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#pragma weak dlsym
#pragma weak dlvsym
#pragma weak __register_frame
extern void __register_frame(void *);

static void fail(const char *what) { fprintf(stderr, "selfpatch: %s\n", what); exit(99); }

static void poke(uintptr_t at, const unsigned char *bytes, size_t size) {
  uintptr_t page = at & -4096ul, end = (at + size + 4095) & -4096ul;
  if (mprotect((void *)page, end - page, PROT_READ | PROT_WRITE | PROT_EXEC)) fail("mprotect");
  memcpy((void *)at, bytes, size);
  if (mprotect((void *)page, end - page, PROT_READ | PROT_EXEC)) fail("mprotect");
}

static void jump(uintptr_t at, uintptr_t to) {
  int32_t distance = (int32_t)(to - (at + 5));
  unsigned char code[5] = {0xe9};
  memcpy(code + 1, &distance, 4);
  poke(at, code, 5);
}

void selfpatch(const char *plan, void *anchor) {
  FILE *in = fopen(plan, "r");
  char word[64], name[512], version[128], form[16], kind[16];
  unsigned long anchor_vaddr, size, offset, target, count;
  long addend;
  unsigned byte;
  void *imports[256];
  int imported = 0;
  if (!in || fscanf(in, "%lx %lx", &anchor_vaddr, &size) != 2) fail("plan");
  uintptr_t bias = (uintptr_t)anchor - anchor_vaddr, base = 0;
  for (uintptr_t try = ((uintptr_t)anchor & -4096ul) + (64ul << 20); !base; try += 1ul << 20) {
    void *got = mmap((void *)try, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != MAP_FAILED) base = (uintptr_t)got;
  }
  while (fscanf(in, "%63s", word) == 1) {
    if (!strcmp(word, "bytes")) {
      if (fscanf(in, "%lx %lu", &offset, &count) != 2) fail("bytes");
      for (unsigned long i = 0; i < count; i++) {
        if (fscanf(in, "%x", &byte) != 1) fail("byte");
        ((unsigned char *)base)[offset + i] = (unsigned char)byte;
      }
    } else if (!strcmp(word, "import")) {
      if (fscanf(in, "%511s %127s", name, version) != 2 || !dlsym) fail("import");
      imports[imported] = strcmp(version, "-") ? dlvsym(RTLD_DEFAULT, name, version) : dlsym(RTLD_DEFAULT, name);
      if (!imports[imported++]) fail(name);
    } else if (!strcmp(word, "relocation")) {
      if (fscanf(in, "%lx %15s %15s %lx %ld", &offset, kind, form, &target, &addend) != 5) fail("relocation");
      uintptr_t at = base + offset;
      uintptr_t s = !strcmp(kind, "payload") ? base + target
                    : !strcmp(kind, "import") ? (uintptr_t)imports[target] : bias + target;
      int64_t value = (int64_t)(s + addend - (strcmp(form, "pc32") ? 0 : at));
      if (!strcmp(form, "abs64")) memcpy((void *)at, &value, 8);
      else {
        if (strcmp(form, "abs32") ? value != (int32_t)value : value != (uint32_t)value) fail("overflow");
        memcpy((void *)at, &value, 4);
      }
    } else if (!strcmp(word, "protect")) {
      if (fscanf(in, "%lx %lx %15s", &offset, &size, kind) != 3) fail("protect");
      int protection = *kind == 'c' ? PROT_READ | PROT_EXEC : *kind == 'r' ? PROT_READ : PROT_READ | PROT_WRITE;
      if (mprotect((void *)(base + offset), size, protection)) fail("mprotect of the payload");
    } else if (!strcmp(word, "unwind")) {
      if (fscanf(in, "%lx", &offset) != 1 || !__register_frame) fail("unwind");
      __register_frame((void *)(base + offset));
    } else if (!strcmp(word, "call")) {
      if (fscanf(in, "%lx", &offset) != 1) fail("call");
      int status = ((int (*)(void))(base + offset))();
      if (status) fail("a hook failed");
    } else if (!strcmp(word, "near")) {
      if (fscanf(in, "%lx %lx", &offset, &target) != 2) fail("near");
      jump(bias + offset, base + target);
    } else if (!strcmp(word, "short")) {
      unsigned long pad;
      if (fscanf(in, "%lx %lx %lx", &offset, &pad, &target) != 3) fail("short");
      jump(bias + pad, base + target);
      unsigned char code[2] = {0xeb, (unsigned char)(pad - (offset + 2))};
      poke(bias + offset, code, 2);
    } else fail(word);
  }
  fclose(in);
}
