/* CVE-2026-63385: a header's value could have a line break, when a space followed it. */
#include <sys/queue.h>

#include "host.h"

#include <event2/http.h>
#include <event2/keyvalq_struct.h>

static const char *verdict(void)
{
	struct evkeyvalq headers;
	int good, folded;

	TAILQ_INIT(&headers);
	good = evhttp_add_header(&headers, "One", "Two Three");
	folded = evhttp_add_header(&headers, "One", "Two\r\n Three");
	evhttp_clear_headers(&headers);
	if (good != 0)
		return "ODD: a good header is not taken";
	return folded == 0 ? "VULNERABLE" : "FIXED";
}
