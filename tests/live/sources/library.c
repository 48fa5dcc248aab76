/* A shared library with everything that is special about one: symbols that can be taken over, hidden ones, thread-local
   variables of its own and of another library, pointers that need relocations. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
static __thread int own_tls = 5;
__thread int shared_tls = 50;
static int counter;
int exported_data = 7;
extern __thread int base_tls;
const char *base_name(void);
static int helper(int n) { counter++; return n @{+@|*@} 10; }
__attribute__((visibility("hidden"), noinline)) int hidden(int n) { __asm__ volatile("" : "+r"(n)); return helper(n) + @{1@|2@}; }
__attribute__((noinline)) int taken_over(void) { return @{1@|2@}; }
int (*const pointers[])(int) = {hidden};
__attribute__((noinline)) int data(int n) {
  int sum = pointers[n](n);
  return sum + counter + exported_data++ + taken_over() @{@|+ 1000@};
}
__attribute__((noinline)) int tls(void) { errno = 2; return (own_tls += @{1@|100@}) + (shared_tls += @{1@|100@}) + (base_tls += @{1@|100@}) + errno; }
__attribute__((noinline)) const char *name(void) {
  static char line[64];
  @{snprintf(line, sizeof line, "%s", base_name());@|snprintf(line, sizeof line, "%s of %zu", base_name(), strlen(base_name()));@}
  return line;
}
