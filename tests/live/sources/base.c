/* A library below the other one. */
__thread int base_tls = 500;
const char *base_name(void) { return "base"; }
