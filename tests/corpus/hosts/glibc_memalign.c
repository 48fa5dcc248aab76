/* CVE-2026-0861: memory of the greatest alignment there is is taken for very little memory, and written far outside. */
#include "host.h"

#include <malloc.h>
#include <stdint.h>

static volatile size_t greatest_alignment = SIZE_MAX / 2 + 1;
static volatile size_t most_bytes = PTRDIFF_MAX - 16;

static void ask_for_the_greatest(void)
{
	if (memalign(greatest_alignment, most_bytes) != NULL)
		_exit(1);
}

static const char *verdict(void)
{
	void *good = memalign(4096, 100);
	int aligned = good != NULL && (uintptr_t)good % 4096 == 0;

	free(good);
	if (!aligned)
		return "ODD: memory is not aligned";
	switch (in_child(ask_for_the_greatest, 1000)) {
	case CHILD_RETURNED:
		return "FIXED";
	case CHILD_DIED:
		return "VULNERABLE";
	default:
		return "ODD: the allocator loops";
	}
}
