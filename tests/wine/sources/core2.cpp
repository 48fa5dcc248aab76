// The second version of two functions of core.cpp: lengths are limited, and exceptions go through, are caught in and
// thrown from the new code.
#include <stdexcept>
#include <string>

extern "C" __attribute__((noinline)) int parse(const char *text, int length) {
  std::string copy(text, 4);
  if (length < 0) throw std::invalid_argument("negative, and seen by the new version of parse");
  return length > 16 ? 16 : length + (int)(copy.size() - 4);
}

extern "C" __attribute__((noinline)) int guarded(int length) {
  std::string witness("destroyed on the way out of the new version");
  try {
    return parse("abcd", length) + (int)(witness.size() - 43);
  } catch (const std::invalid_argument &) {
    try {
      throw;
    } catch (const std::logic_error &) {
      throw std::runtime_error("new");
    }
  }
}
