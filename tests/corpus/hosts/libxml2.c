/* CVE-2023-29469: the hash of an empty dictionary string depended on the byte that the caller's buffer had at its place,
 * so one empty string could be several dictionary entries. */
#include "host.h"

#include <libxml/tree.h>
#include <libxml/dict.h>

static const char *verdict(void)
{
	xmlDictPtr dictionary = xmlDictCreate();
	const xmlChar *first = xmlDictLookup(dictionary, BAD_CAST "a", 0);
	int others = 0;

	for (char c = 'b'; c <= 'z'; c++) {
		xmlChar buffer[2] = { (xmlChar)c, 0 };

		others += xmlDictLookup(dictionary, buffer, 0) != first;
	}
	xmlDictFree(dictionary);
	return others == 0 ? "FIXED" : "VULNERABLE";
}
