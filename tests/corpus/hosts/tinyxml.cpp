/* CVE-2021-42260: TiXmlParsingData::Stamp never got past the byte 0xEF (which starts a UTF-8 sequence of three) when
 * fewer than two bytes followed it. */
#include "host.h"

#include "tinyxml.h"

static void parse_truncated(void)
{
	TiXmlDocument document;

	document.Parse("<\xef<", nullptr, TIXML_ENCODING_UTF8);
}

static const char *verdict(void)
{
	TiXmlDocument good;

	good.Parse("<a b='c'/>", nullptr, TIXML_ENCODING_UTF8);
	if (good.Error() || good.RootElement() == nullptr)
		return "ODD: a good document is not parsed";
	switch (in_child(parse_truncated, 200)) {
	case CHILD_RETURNED:
		return "FIXED";
	case CHILD_LOOPED:
		return "VULNERABLE";
	default:
		return "ODD: the parser died";
	}
}
