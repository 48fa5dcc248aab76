/* CVE-2025-7039: the name of a temporary file is made from the time; before 1970, letters were taken from in front of
 * the table. This program gives the library such a time. */
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include "host.h"

#include <glib.h>

static int long_ago;

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec real;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &real);
	now->tv_sec = long_ago ? -1000000000 : real.tv_sec;
	now->tv_usec = long_ago ? 0 : real.tv_nsec / 1000;
	return 0;
}

static const char *verdict(void)
{
	const char *seen = "FIXED";

	for (int i = 0; i < 20 && strcmp(seen, "FIXED") == 0; i++) {
		char name[] = "temporary-XXXXXX";
		int fd;

		long_ago = 1;
		fd = g_mkstemp(name);
		long_ago = 0;
		if (fd >= 0) {
			close(fd);
			unlink(name);
		}
		for (const char *at = name + strlen("temporary-"); at < name + sizeof name - 1; at++)
			if (!g_ascii_isupper(*at) && !g_ascii_isdigit(*at))
				seen = "VULNERABLE";
	}
	return seen;
}
