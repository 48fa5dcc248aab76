/* The third version of what threads.c answers: it replaces one function alone. */
int answer(int x) {
  __asm__ volatile("" : "+r"(x));
  return x * 0 + 3;
}
