/* Scenarios in C: the line that comes in names one, the line that goes out is its result. */
#define _GNU_SOURCE
#include <complex.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef __clang__
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE __attribute__((noinline, noclone))
#endif
#ifndef IS_STATIC
#define IS_STATIC 0 /* a static program has no other library functions than those that it calls already */
#endif
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))
/* Nothing is known of n from here on, and the function has room for a jump. */
#define LONGER(n) __asm__ volatile("nopw 0(%%rax,%%rax,1)" : "+r"(n))

/* --- parameters --- */
NOINLINE long many(int a, long b, short c, char d, unsigned e, long f, int g, long h, short i, char j, long long k) {
  return @{a + b + c + d + e + f + g + h + i + j + k@|a - b + 3 * c + d * 2 + e - f + g * 5 + h - i + 7 * j + 11 * k@};
}
NOINLINE double floats(float a, double b, int n, float c, double d, double e, double f, float g, double h, double i,
                       double j, float k) {
  return @{a + b + c + d + e + f + g + h + i + j + k + n@|a * 1.25 + b - c + d * 0.5 + e - f + g + h * i - j + k * n@};
}
struct small { int a; double b; };
struct pair { long a, b; };
struct big { long x[6]; char name[8]; };
NOINLINE struct small small(struct small s, struct pair p) {
  struct small r = {s.a + @{(int)p.a@|(int)p.b * 2@}, s.b * @{2@|3@}};
  return r;
}
NOINLINE struct big big(struct big b, int n) {
  for (int i = 0; i < 6; i++) b.x[i] += @{n@|n * i@};
  b.name[0] = @{'x'@|'y'@};
  return b;
}
NOINLINE long double extended(long double a, long double complex z) { return a @{+@|*@} creall(z) @{+@|-@} cimagl(z); }
NOINLINE __int128 wide(__int128 a, unsigned __int128 b) { return a * @{3@|5@} + (__int128)(b >> @{3@|1@}); }
NOINLINE double sum(const char *kinds, ...) {
  va_list ap;
  double total = @{0@|1000@};
  va_start(ap, kinds);
  for (; *kinds; kinds++) total += *kinds == 'd' ? va_arg(ap, double) : *kinds == 'l' ? va_arg(ap, long) : va_arg(ap, int);
  va_end(ap);
  return total;
}
NOINLINE int format(char *to, size_t size, const char *how, ...) {
  va_list ap;
  va_start(ap, how);
  int n = vsnprintf(to, size, how, ap);
  va_end(ap);
  return @{n@|-n@};
}
static void params(const char *a) {
  struct small s = small((struct small){3, 1.5}, (struct pair){10, 20});
  struct big b = big((struct big){{1, 2, 3, 4, 5, 6}, "name"}, 10);
  printf("%ld %.3f %d %.1f %ld %ld %s\n", many(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
         floats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), s.a, s.b, b.x[0], b.x[5], b.name);
}
static void longdouble(const char *a) {
  printf("%.2Lf %ld\n", extended(5.5L, 2.0L + 3.0L * I), (long)wide(((__int128)1 << 70) + 7, 80));
}
static void varargs(const char *a) {
  char to[64];
  int n = format(to, sizeof to, "%d-%s-%.1f", 7, "x", 2.5);
  printf("%.1f %d %s\n", sum("idlddddddddd", 1, 2.5, 3L, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), n, to);
}

/* --- shapes of code --- */
NOINLINE long factorial(int n) { return n < 2 ? @{1@|2@} : n * factorial(n - 1); }
static int odd(int n);
NOINLINE int even(int n) { return n == 0 ? @{1@|10@} : odd(n - 1); }
NOINLINE static int odd(int n) { return n == 0 ? @{0@|20@} : even(n - 1); }
static void recursion(const char *a) { printf("%ld %d %d\n", factorial(6), even(9), even(8)); }

NOINLINE long redzone_leaf(long n) {
  volatile long a[8];
  for (int i = 0; i < 8; i++) a[i] = n * i @{+@|-@} i;
  return a[1] + a[3] + a[7];
}
static void redzone(const char *a) { printf("%ld\n", redzone_leaf(5)); }

NOINLINE int tail_target(int n) { LONGER(n); return n * @{2@|3@}; }
NOINLINE int tail_caller(int n) { return tail_target(n @{+ 1@|+ 2@}); }
static void tail(const char *a) { printf("%d\n", tail_caller(5)); }

NOINLINE static int dense(int n, int m) {
  switch (n) {
  case 0: return m + 1;
  case 1: return m * 3 @{@|+ 1@};
  case 2: return m - 7;
  case 3: return m ^ 0x55;
  case 4: return @{m << 2@|m << 3@};
  case 5: return m / 3;
  case 6: return puts("") * 0 + 6;
  case 7: return m % 5;
  case 8: return -m;
  @{@|case 9: return m * m;@}
  default: return @{-1@|-2@};
  }
}
static void jumptable(const char *a) {
  for (int i = 0; i < 11; i++) if (i != 6) printf("%d ", dense(i, 100));
  puts("");
}
NOINLINE static int interpret(const char *code) {
  static const void *const ops[] = {&&add, &&sub, &&dbl, &&end};
  int value = 0;
  goto *ops[*code - '0'];
add: value += @{1@|10@}; code++; goto *ops[*code - '0'];
sub: value -= 1; code++; goto *ops[*code - '0'];
dbl: value *= 2; code++; goto *ops[*code - '0'];
end: return value;
}
static void computedgoto(const char *a) { printf("%d\n", interpret("0002123")); }

__attribute__((cold, noinline)) static void complain(const char *what) { printf("complaint %s ", what); }
NOINLINE int cold_hot(int n) {
  if (__builtin_expect(n < 0, 0)) { complain(@{"negative"@|"below zero"@}); complain("again"); return -n; }
  return n * 2;
}
NOINLINE int hot_cold(int n) {
  if (__builtin_expect(n < 0, 0)) { complain("minus"); complain("more"); return -n; }
  return n * @{2@|4@};
}
static void cold(const char *a) {
  int x = cold_hot(5), y = cold_hot(-5), z = hot_cold(5), w = hot_cold(-5);
  printf("%d %d %d %d\n", x, y, z, w);
}

static __attribute__((noinline)) int children(int kind, const int *unused, int n) {
  LONGER(n);
  if (kind == 1) return n * @{2@|20@};
  if (kind == 2) return *unused + n;
  return n;
}
static __attribute__((noinline)) int by_reference(const struct pair *p, int never) { return (int)(p->a + @{p->b@|2 * p->b@}); }
static int partly(struct pair *p) {
  if (!p->a) return 0;
  for (int i = 0; i < 10; i++) { p->b += i @{@|* 2@}; OPAQUE(p->b); putchar(p->b % 2 ? ' ' : ' '); }
  return (int)p->b;
}
NOINLINE int child_user1(int n) { struct pair p = {n, 2}; return children(1, NULL, n) + by_reference(&p, 0) + partly(&p); }
NOINLINE int child_user2(int n) { struct pair p = {n, 3}; return children(1, NULL, n + 1) + by_reference(&p, 1) + partly(&p); }
static void clones(const char *a) { printf("%d %d\n", child_user1(4), child_user2(5)); }

static inline int inlined(int n) { LONGER(n); return n * @{7@|9@}; }
NOINLINE int inliner1(int n) { return inlined(n) + 1; }
NOINLINE int inliner2(int n) { return inlined(n + 1) + 2; }
static void inlines(const char *a) { printf("%d %d\n", inliner1(1), inliner2(2)); }

static jmp_buf back;
NOINLINE static void leap(int n) { if (n == 0) longjmp(back, @{4@|5@}); leap(n - 1); }
NOINLINE static int land(void) { int r = setjmp(back); if (r == 0) leap(3); return r * @{10@|100@}; }
static void longjumps(const char *a) { printf("%d\n", land()); }

NOINLINE static int grow(int n) {
  char fixed[n], *more = __builtin_alloca(n * 2);
  memset(fixed, 1, n);
  memset(more, @{2@|3@}, n * 2);
  OPAQUE(more);
  return fixed[n - 1] + more[n];
}
static void stackarrays(const char *a) { printf("%d\n", grow(50)); }

NOINLINE __attribute__((visibility("hidden"))) int hidden_function(int n) { LONGER(n); return n + @{1@|2@}; }
NOINLINE __attribute__((weak)) int weak_function(int n) { LONGER(n); return n + @{3@|4@}; }
NOINLINE int aliased(int n) { LONGER(n); return n + @{5@|6@}; }
extern int other_name(int n) __attribute__((alias("aliased")));
static void visibility(const char *a) { printf("%d %d %d\n", hidden_function(0), weak_function(0), other_name(0)); }

@{@|static@} NOINLINE int becomes_local(int n) { LONGER(n); return n + @{1@|2@}; }
@{static@|@} NOINLINE int becomes_global(int n) { LONGER(n); return n - @{1@|2@}; }
static void converted(const char *a) { printf("%d %d\n", becomes_local(0), becomes_global(10)); }

typedef double vector __attribute__((vector_size(32)));
__attribute__((target("avx2"), noinline, noclone)) static void vectors(double *to, const double *from) {
  vector a, b;
  memcpy(&a, from, 32);
  memcpy(&b, from + 4, 32);
  a = a @{+@|*@} b;
  memcpy(to, &a, 32);
}
static void avx(const char *a) {
  double in[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[4] = {0};
  if (__builtin_cpu_supports("avx2")) vectors(out, in);
  printf("%d %g %g %g %g\n", !__builtin_cpu_supports("avx2"), out[0], out[1], out[2], out[3]);
}

/* --- data --- */
static int existing = 5;
int global_existing = 50;
static int zeroed;
int common_existing;
static const int table_existing[] = {2, 3, 5, 7, 11, 13};
int read_mostly __attribute__((section(".data.read_mostly"))) = 9;
@{@|static int new_static = 3, new_zero;
int new_global = 30;
static const int new_table[] = {100, 200, 300};
static struct { char c; long aligned __attribute__((aligned(128))); } new_aligned = {1, 2};
static const char *new_names[] = {"alpha", "beta"};@}
NOINLINE static void access_data(void) {
  existing++, global_existing += 2, zeroed += 3, common_existing += 4;
  @{printf("%d %d %d %d %d %d", existing, global_existing, zeroed, common_existing, table_existing[existing % 6], read_mostly);
  @|new_static++, new_zero += 2, new_global += 3;
  printf("%d %d %d %d %d %d ", existing, global_existing, zeroed, common_existing, table_existing[existing % 6], read_mostly);
  printf("%d %d %d %d %s %d %.2f", new_static, new_zero, new_global, new_table[new_zero % 3], new_names[existing % 2],
         (int)((uintptr_t)&new_aligned.aligned % 128), existing * 0.3125);@}
  puts("");
}
static void data(const char *a) { access_data(); }

NOINLINE static int local1(void) { static int count; return count += @{1@|10@}; }
NOINLINE static int local2(void) { static int count = 100; return count += @{1@|10@}; }
NOINLINE static int local3(void) { static int count = 7, @{@|fresh = 1000, @}other; return ++count + ++other @{@|+ ++fresh@}; }
static void locals(const char *a) { printf("%d %d %d\n", local1(), local2(), local3()); }

static __thread int tls_local = 11;
__thread int tls_global;
NOINLINE static int use_tls(void) { errno = @{3@|4@}; return (tls_local += @{1@|2@}) + (tls_global += @{100@|200@}) + errno; }
static void *in_thread(void *p) { *(int *)p = use_tls(); return p; }
static void tls(const char *a) {
  pthread_t t;
  int there = 0, here = use_tls();
  if (pthread_create(&t, NULL, in_thread, &there)) abort();
  pthread_join(t, NULL);
  printf("%d %d\n", here, there);
}

NOINLINE static int stringy(const char *s) {
  @{return (int)strlen(s);
  @|if (IS_STATIC) return (int)strlen(s) + 6048;
  char copy[64];
  strcpy(copy, s);
  memmove(copy + 1, copy, 20);
  return (int)(strlen(copy) * 1000 + (strrchr(copy, 'o') - copy) * 10 + strspn(copy, "h") + (strcasecmp("A", "a") == 0));@}
}
static void ifuncs(const char *a) { printf("%d\n", stringy("hello")); }

/* --- pointers to functions --- */
struct object { int (*call)(int); int (*compare)(const void *, const void *); };
static struct object *held;
NOINLINE static int callback(int n) { LONGER(n); return n * @{2@|5@}; }
NOINLINE static int order(const void *a, const void *b) { int x = *(const int *)a, y = *(const int *)b; return @{x - y@|y - x@}; }
NOINLINE static int same(void) { return @{held->call == callback@|2 * (held->call == callback) + (held->compare == order)@}; }
@{@|NOINLINE static int brand_new(int n) { return n + 4242; }@}
NOINLINE static int refer(int n) { int (*f)(int) = @{tail_target@|n ? brand_new : tail_target@}; OPAQUE(f); return f(1); }
static int (*const table[])(int) = {callback, hidden_function, weak_function};
NOINLINE static int by_table(int i) { return table[i](1) + @{0@|1000@}; }
static void pointers(const char *a) {
  int v[] = {3, 1, 2};
  qsort(v, 3, sizeof v[0], held->compare);
  printf("%d %d%d%d %d %d %d\n", held->call(10), v[0], v[1], v[2], same(), refer(1), by_table(0));
}
static volatile sig_atomic_t seen;
static void on_signal(int n) { seen += @{1@|100@}; }
static void signals(const char *a) { seen = 0; raise(SIGUSR1); printf("%d\n", (int)seen); }

/* --- other libraries --- */
NOINLINE static double calls(double x) {
  @{return cbrt(x * x * 4);
  @|if (IS_STATIC) return cbrt(x * x * 4) + 64;
  return sqrt(x) + pow(x, 3) + (getenv("NO_SUCH_VARIABLE") ? 1 : 0) + (getppid() > 0) + (isdigit('5') != 0);@}
}
static void imports(const char *a) { double x = 4; __asm__ volatile("" : "+x"(x)); printf("%.1f\n", calls(x)); }

NOINLINE static const char *who(void) { return @{"short"@|__func__@}; }
static void names(const char *a) { puts(who()); }

#define E(n) {#n, n}
static const struct { const char *name; void (*run)(const char *); } all[] = {
  E(params), E(longdouble), E(varargs), E(recursion), E(redzone), E(tail), E(jumptable), E(computedgoto), E(cold),
  E(clones), E(inlines), E(longjumps), E(stackarrays), E(visibility), E(converted), E(avx), E(data), E(locals), E(tls),
  E(ifuncs), E(pointers), E(signals), E(imports), E(names)};

int main(void) {
  char line[256];
  held = malloc(sizeof *held);
  held->call = callback, held->compare = order;
  signal(SIGUSR1, on_signal);
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) if (!strcmp(line, all[i].name)) all[i].run(line);
  }
  return 0;
}
