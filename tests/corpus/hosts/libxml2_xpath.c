/* CVE-2025-9714: an XPath function that evaluates XPath starts to count its depth anew each time, without an end. */
#include "host.h"

#include <libxml/parser.h>
#include <libxml/xpath.h>
#include <libxml/xpathInternals.h>

static void silent(void *context, xmlErrorPtr error)
{
	(void)context;
	(void)error;
}

/* again(): what the extension dyn:evaluate does, with an expression that calls it again. */
static void again(xmlXPathParserContextPtr parser, int arguments)
{
	xmlXPathObjectPtr inner = xmlXPathEval(BAD_CAST "again()", parser->context);

	(void)arguments;
	xmlXPathFreeObject(inner);
	xmlXPathReturnNumber(parser, 1);
}

static void evaluate(void)
{
	xmlDocPtr document = xmlReadMemory("<a/>", 4, NULL, NULL, 0);
	xmlXPathContextPtr context = xmlXPathNewContext(document);

	xmlXPathRegisterFunc(context, BAD_CAST "again", again);
	xmlSetStructuredErrorFunc(NULL, silent);
	context->error = silent;
	xmlXPathFreeObject(xmlXPathEval(BAD_CAST "again()", context));
	xmlXPathFreeContext(context);
	xmlFreeDoc(document);
}

static const char *verdict(void)
{
	xmlDocPtr document = xmlReadMemory("<a><b/><b/></a>", 15, NULL, NULL, 0);
	xmlXPathContextPtr context = xmlXPathNewContext(document);
	xmlXPathObjectPtr counted = xmlXPathEval(BAD_CAST "count(//b)", context);
	int good = counted != NULL && counted->floatval == 2;

	xmlXPathFreeObject(counted);
	xmlXPathFreeContext(context);
	xmlFreeDoc(document);
	if (!good)
		return "ODD: two elements are not counted";
	switch (in_child(evaluate, 5000)) {
	case CHILD_RETURNED:
		return "FIXED";
	case CHILD_DIED:
		return "VULNERABLE";
	default:
		return "ODD: the evaluation loops";
	}
}
