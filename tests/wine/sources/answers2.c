/* The second version of what threads.c answers. */
int answer(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + 2;
}
int other(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + 20;
}
