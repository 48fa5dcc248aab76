/* CVE-2023-31130: the parser of IPv6 addresses wrote before its buffer. The fix rewrites it, and lets ares_inet_pton use
 * it always; unlike the C library's, which the old code called, it takes a leading zero in the dotted part. */
#include "host.h"

#include <ares.h>
#include <arpa/inet.h>

static const char *verdict(void)
{
	unsigned char address[16];

	if (ares_inet_pton(AF_INET6, "12:34::ff", address) != 1)
		return "ODD: a good address is not parsed";
	return ares_inet_pton(AF_INET6, "12:34::ffff:002.2.3.4", address) == 1 ? "FIXED" : "VULNERABLE";
}
