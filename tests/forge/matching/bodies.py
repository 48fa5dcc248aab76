"""Bodies of generated functions: each shows the matcher another shape of machine code or of reference.

Every function is ``u name(u a, u b)``. ``$words`` are parameters (see programs.Parameters), so that twins can be made
which differ in a single one of them. Nothing is run: what counts is what compilers and linkers make of it.
"""

from __future__ import annotations

from string import Template

C_HEAD = """
typedef unsigned long u;
typedef __builtin_va_list va;
struct node { u value; struct node *next; unsigned char flag : 3; unsigned rest : 13; short odd; };
extern u strlen(const char *); extern int strcmp(const char *, const char *); extern int puts(const char *);
extern int printf(const char *, ...); extern void abort(void) __attribute__((noreturn));
extern void *memset(void *, int, u); extern void *memcpy(void *, const void *, u);
extern u nowhere(u, u) __attribute__((weak));
"""

BODIES = {
    "arithmetic": "u r = a * $n + (b >> $s); if (r & $m) r ^= b; return r + $n;",
    "signed": "long r = (long)a / $s - (long)b * $s; if (r < (long)$n) r = -r; return (u)(r % 1000);",
    "call": "u r = $callee(a ^ $n, b); return r * 3 + $var++;",
    "two_calls": "u r = $callee(a, b + 1); r ^= $other(b, a); $var += r; return r + $n;",
    "tail": "if (a > $n) return $callee(b, a); $var += b; return $other(a + 1, b);",
    "only_tail": "return $callee(a + $s, b);",
    "recursion": "if (a < 2) return b + $n; return $self(a - 1, b ^ $n) + $self(a - 2, b) * $s;",
    "loop": "u r = 0; for (u i = 0; i < (b & 63); i++) { r += i * $n; if (r > 100000) r %= 9973; } return r ^ $var;",
    "dense_switch": (
        "u r = b; switch (a % 11) { case $c0: r += $n; $callee(r, 1); break; case $c1: r ^= $var; break;"
        " case $c2: r *= 7; break; case $c3: $var = r; break; case $c4: r -= $m; break; case $c5: return r >> $s;"
        " case $c6: r = $other(r, b); break; default: r = ~r; } return r + 1;"
    ),
    "wide_switch": (
        "switch (a & 31) { case $c0: return $callee(b, 0); case $c1: return b * $n; case $c2: return $var;"
        " case $c3: $var = b; return 1; case $c4: case $c5: return $other(b, a); case 19: puts($word); return 2;"
        " case 20: return b / 3; case 21: return b % 77; case 23: return ~b; case 27: return b << 3; } return a;"
    ),
    "constant_switch": (
        "u r; switch (a) { case 0: r = $n; break; case 1: r = 12; break; case 2: r = $m; break; case 3: r = 9; break;"
        " case 4: r = 77; break; case 5: r = 31; break; case 6: r = $n; break; default: r = b; } return r + $s;"
    ),
    "string_switch": (
        "const char *p; switch (a) { case 0: p = $word; break; case 1: p = $word2; break; case 2: p = $word3; break;"
        ' case 3: p = "three"; break; case 4: p = $word; break; case 5: p = "ee"; break; default: p = "none"; }'
        " return strlen(p) + b;"
    ),
    "switch_on_strings": (
        "const char *w = $names[b & 3]; if (!strcmp(w, $word)) return 1; if (!strcmp(w, $word2)) return $n;"
        " if (!strcmp(w, $word3)) return $callee(a, b); return 0;"
    ),
    "strings": "puts($word); printf($word2, a, b); return strlen($names[a & 3]) + $s;",
    "one_string": "return (u)puts($word);",
    "table": "return $table[a & 7] * $s + $table[b & 3] + (u)$names[a & 3][0];",
    "array": "$array[a & 15] += $n; $array[(b + 1) & 15] ^= a; return $array[b & 15] + $var;",
    "fixed_element": "$array[$c0] = a + $array[$c1]; return $array[$c2] * $s;",
    "list": "u r = 0; for (struct node *p = &$list[b & 3]; p; p = p->next) r += p->value * p->flag + $n; return r;",
    "bits": "$list[b & 3].rest += $s; $list[a & 3].flag = b; return $list[a & 3].rest + (u)$list[1].odd;",
    "floats": "double d = (double)(a & 1023) * $real + $real2; return (u)(d / 3.25) + b;",
    "single_floats": "float d = (float)(b & 255) + ${real}f; if (d > ${real2}f) d *= 0.5f; return (u)d + a;",
    "long_double": "long double d = (long double)(a & 1023) * ${real}L; return (u)(d + (long double)$s) ^ b;",
    "vectors": (
        "typedef int v4 __attribute__((vector_size(16))); v4 x = {(int)a, (int)b, $s, 4}; v4 y = {$s, 7, 9, $c0};"
        " x = x * y + y; return (u)(x[0] + x[3]) + $n;"
    ),
    "thread_local": "$tls += a; if (b > $n) $tls2 ^= b; return $tls * 3 + $tls2;",
    "one_thread_local": "return $tls2 += a;",
    "far_thread_local": "g_tls ^= a; return g_tls + h_tls + $tls + b;",
    "pointers": "u (*volatile p)(u, u) = a & 1 ? $callee : $other; return p(b, a + $s);",
    "pointer_table": "return $pointers[a & 3](b, a) + $pointers[b & 1](a, $s);",
    "cold_call": "if (__builtin_expect(a == $n, 0)) { $unlikely(a, b); puts($word); } return b * $s + $var;",
    "cold_abort": "if (__builtin_expect(b == $n * 77, 0)) { printf($word, a); abort(); } return $callee(a, b) + $s;",
    "variadic": "return $gather($s, a, b, $n) + (u)printf($word, a, b, $real);",
    "memory": "char t[48]; memset(t, (int)(b & 127), sizeof t); t[a & 31] = $s; return (u)t[b & 31] + $n;",
    "copy": "struct node t[3]; memcpy(t, $list, sizeof t); t[a % 3].value += $n; return t[b % 3].value + t[0].rest;",
    "label_table": (
        "static const void *const where[] = {&&one, &&two, &&three, &&one}; goto *where[a & 3];"
        " one: return b + $n; two: return $callee(b, a); three: $var ^= b; return $s;"
    ),
    "numbered": "static u n = $n; static const u k[5] = {1, $s, 3, 5, $c0}; n = n * 3 + k[a % 5]; return n ^ b;",
    "numbered_strings": (
        "static const char *const k[] = {$word, $word2, $word3}; static int n; return (u)k[(a + (u)n++) % 3][0] + $s;"
    ),
    "assembler": 'u r = a; __asm__("bswap %0\\n\\tadd %1, %0" : "+r"(r) : "r"(b) : "cc"); return r + $n;',
    "assembler_loop": 'u r = a | 1; __asm__ volatile("1: dec %0\\n\\tjnz 1b" : "+r"(r) : : "cc"); return r + $s;',
    "assembler_memory": 'u r; __asm__ volatile("mov %1, %0" : "=r"(r) : "m"($var)); return r * $s + a;',
    "globals": "g_shared ^= $n; g_zero += a; return g_shared + g_zero + b;",
    "global_pointer": "g_pointer = &$var; return *g_pointer + (g_pointer == &$var2) + $s;",
    "address": "return (u)&$var + (u)$callee + (u)&$array[$c0] + a;",
    "far_call": "return $far(a + $n, b) + $far2(b, a);",
    "far_address": "return ((u)$far ^ a) + (u)&g_shared + $s;",
    "far_tail": "return a & 1 ? $far(b, a) : $far2(a, $n);",
    "imports": "return strlen($word) + (u)strcmp($names[a & 3], $names[b & 3]) + (u)(&puts != 0);",
    "weak": "if (nowhere) return nowhere(a, $n); return b + $s;",
    "indirect": "return choose(a, b + $n) + $s;",
    "atomic": "__atomic_fetch_add(&$var, $n, __ATOMIC_SEQ_CST); return __atomic_exchange_n(&$var2, a, 2) + $s;",
    "wide": "unsigned __int128 r = (unsigned __int128)a * b + $n; return (u)(r >> 64) ^ (u)r;",
    "dynamic": "volatile char t[(a & 31) + 1]; t[a & 1] = (char)$s; return (u)t[0] + $callee(b, (u)t);",
    "many": (
        "u r = a; r = r * $n ^ (r >> 7); r = r * 31 + b; r ^= $callee(r, b); r = (r << 5) - $table[r & 7];"
        " if (r % 3 == 1) $array[r & 15]++; else if (r % 3 == 2) r += $other(b, r); $var = r; return r + $var2;"
    ),
    "nothing": "return 0;",
    "small": "return a + $s;",
    "read": "return $var;",
    "write": "$var = a; return b;",
}
"""C, by the name of the shape."""

CC_HEAD = (
    """
extern "C" {C_HEAD}
namespace {{ int anonymous = 3; }}
struct Shape {{ virtual ~Shape() {{}} virtual u area(u x) const {{ return x; }} u side = 1; }};
template <typename T, int N> struct Box {{ T items[N]; static inline u made = 7;
  u put(T x, u at) {{ items[at % N] = x; return made++ + at; }} }};
template <int N> inline u power(u x) {{ u r = N; for (int i = 0; i < N; i++) r *= x; return r; }}
inline u counted(u x) {{ static u calls = 5; calls += x; return calls; }}
""".replace("{C_HEAD}", "{" + C_HEAD + "}")
    .replace("{{", "{")
    .replace("}}", "}")
)

CC_BODIES = {
    "template": "static Box<u, $s + 1> box; return box.put(a, b) + power<$s>(b) + $n;",
    "template_twin": "return power<$s>(a) + power<$s + 1>(b) + counted(a);",
    "throws": "if (a == $n) throw $s; return b + $var;",
    "catches": "try { return $callee(a, b); } catch (int e) { $var += (u)e; return $s; } catch (...) {} return 0;",
    "cleanup": "struct T { u x; ~T() { $var2 ^= x; } } t{a}; u r = $callee(t.x, b); return r + $s;",
    "virtual": "struct S : Shape { u area(u x) const override { return x * $n + side; } } s; Shape *p = &s;"
    ' __asm__("" : "+r"(p)); return p->area(a) + b;',
    "lambda": "auto f = [=](u x) { return x * $n + b; }; u (*p)(u) = [](u x) { return x + $var; }; return f(a) + p(b);",
    "guarded": "static u once = $callee(a, 1); return once + b + $n;",
    "namespaced": "anonymous += (int)a; return (u)anonymous * $s;",
}
"""C++, besides those of C that are C++ too."""


def body(shape: str, **parameters: str) -> str:
    """The statements of one function."""
    return Template({**BODIES, **CC_BODIES}[shape]).substitute(parameters)
