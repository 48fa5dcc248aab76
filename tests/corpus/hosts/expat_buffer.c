/* CVE-2024-45490: XML_ParseBuffer took a negative length. */
#include <string.h>

#include "host.h"

#include <expat.h>

static const char *verdict(void)
{
	XML_Parser parser = XML_ParserCreate(NULL);
	enum XML_Status status;
	enum XML_Error error;

	memcpy(XML_GetBuffer(parser, 64), "<a/>", 4);
	status = XML_ParseBuffer(parser, -1, 0);
	error = XML_GetErrorCode(parser);
	XML_ParserFree(parser);
	if (status == XML_STATUS_ERROR)
		return error == XML_ERROR_INVALID_ARGUMENT ? "FIXED" : "ODD: another error";
	return "VULNERABLE";
}
