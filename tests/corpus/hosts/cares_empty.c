/* CVE-2023-32067: an empty datagram from the DNS server was taken for the end of the connection. The server (its port is
 * in the environment) sends one before each answer. */
#include "host.h"

#include <ares.h>
#include <arpa/inet.h>
#include <sys/select.h>

static int status;
static int answered;

static void answer(void *unused, int result, int timeouts, unsigned char *message, int length)
{
	(void)unused, (void)timeouts, (void)message, (void)length;
	status = result;
	answered = 1;
}

static const char *verdict(void)
{
	struct in_addr server = { htonl(INADDR_LOOPBACK) };
	struct ares_options options = { .flags = ARES_FLAG_NOSEARCH, .timeout = 20000, .tries = 1, .servers = &server,
		.nservers = 1, .udp_port = (unsigned short)atoi(getenv("DNS_PORT")) };
	int mask = ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_SERVERS | ARES_OPT_UDP_PORT;
	ares_channel channel;

	if (ares_library_init(ARES_LIB_INIT_ALL) != ARES_SUCCESS ||
	    ares_init_options(&channel, &options, mask) != ARES_SUCCESS)
		return "ODD: no channel";
	answered = 0;
	ares_query(channel, "probe.example", 1, 1, answer, NULL);
	while (!answered) {
		fd_set readable, writable;
		struct timeval wait, *limit;
		int count;

		FD_ZERO(&readable);
		FD_ZERO(&writable);
		count = ares_fds(channel, &readable, &writable);
		if (count == 0)
			break;
		limit = ares_timeout(channel, NULL, &wait);
		select(count, &readable, &writable, NULL, limit);
		ares_process(channel, &readable, &writable);
	}
	ares_destroy(channel);
	ares_library_cleanup();
	if (!answered)
		return "ODD: the query has no end";
	return status == ARES_SUCCESS ? "FIXED" : status == ARES_ECONNREFUSED ? "VULNERABLE" : ares_strerror(status);
}
