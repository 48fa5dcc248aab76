/* The second version of the functions of odd.c. */
__attribute__((noipa)) int tiny(int x) { return x + 1; }
__attribute__((noipa)) int forever(int x) { return x + 1; }
