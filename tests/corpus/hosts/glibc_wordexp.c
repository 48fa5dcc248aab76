/* CVE-2025-15281: words of a reused list are appended behind as many words that it no longer has. */
#include "host.h"

#include <string.h>
#include <wordexp.h>

static const char *verdict(void)
{
	wordexp_t words;
	size_t count;

	memset(&words, 0, sizeof words);
	if (wordexp("one two three", &words, 0) != 0 || words.we_wordc != 3)
		return "ODD: three words are not three";
	if (wordexp("four", &words, WRDE_REUSE | WRDE_APPEND) != 0)
		return "ODD: the list cannot be used again";
	count = words.we_wordc;
	if (count == 1) {
		wordfree(&words);
		return "FIXED";
	}
	return count == 4 ? "VULNERABLE" : "ODD: neither one word nor four";
}
