/* CVE-2025-57052: the digits of an array index in a JSON pointer were compared wrongly, so that "/1A" was read as the
 * number 10 * 1 + ('A' - '0') = 27 instead of as no index at all. */
#include "host.h"

#include "cJSON.h"
#include "cJSON_Utils.h"

static const char *verdict(void)
{
	cJSON *array = cJSON_CreateArray(), *index, *no_index;
	const char *seen = "ODD: /1A found another item than 27";

	for (int i = 0; i < 40; i++)
		cJSON_AddItemToArray(array, cJSON_CreateNumber(i));
	index = cJSONUtils_GetPointer(array, "/12");
	no_index = cJSONUtils_GetPointer(array, "/1A");
	if (index == NULL || index->valueint != 12)
		seen = "ODD: /12 did not find item 12";
	else if (no_index == NULL)
		seen = "FIXED";
	else if (no_index->valueint == 27)
		seen = "VULNERABLE";
	cJSON_Delete(array);
	return seen;
}
