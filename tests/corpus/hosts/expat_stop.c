/* CVE-2024-50602: a parser that has not started could be stopped, and crashed when it was resumed. The fix is in two
 * functions: the one that refuses, and the one that has a text for it. */
#include <string.h>

#include "host.h"

#include <expat.h>

enum { NOT_STARTED = 44 };

static const char *verdict(void)
{
	XML_Parser parser = XML_ParserCreate(NULL);
	const XML_LChar *text = XML_ErrorString((enum XML_Error)NOT_STARTED);
	int stopped = XML_StopParser(parser, XML_TRUE) == XML_STATUS_OK;
	int error = (int)XML_GetErrorCode(parser);

	XML_ParserFree(parser);
	if (stopped)
		return text == NULL ? "VULNERABLE" : "ODD: the text is new, the check is old";
	if (error != NOT_STARTED || text == NULL || strcmp(text, "parser not started") != 0)
		return "ODD: the check is new, the text is old";
	return "FIXED";
}
