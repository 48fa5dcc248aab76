/* The second version of what fibers.c waits in. */
__attribute__((noipa)) int parked(int x) { return x + 1; }
