/* CVE-2026-27171: the check of a length that is negative never comes to an end. */
#include "host.h"

#include <zlib.h>

static void combine_negative(void)
{
	crc32_combine(1, 2, -1);
	crc32_combine_gen(-1);
}

static const char *verdict(void)
{
	const Bytef *text = (const Bytef *)"midflight";
	uLong whole = crc32(0, text, 9);
	uLong joined = crc32_combine(crc32(0, text, 3), crc32(0, text + 3, 6), 6);

	if (joined != whole)
		return "ODD: two checksums are not joined to that of the whole";
	switch (in_child(combine_negative, 200)) {
	case CHILD_RETURNED:
		return "FIXED";
	case CHILD_LOOPED:
		return "VULNERABLE";
	default:
		return "ODD: the library died";
	}
}
