/* CVE-2026-4878: capabilities are set on a name that was looked at before, and may be another file by now.
 * Seen by our own setxattr(2) and fsetxattr(2), which the library calls in place of those of the C library. */
#include "host.h"

#include <fcntl.h>
#include <sys/types.h>
#include <sys/capability.h>

static int by_name, by_descriptor;

int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
	(void)path, (void)name, (void)value, (void)size, (void)flags;
	by_name++;
	return 0;
}

int fsetxattr(int descriptor, const char *name, const void *value, size_t size, int flags)
{
	(void)descriptor, (void)name, (void)value, (void)size, (void)flags;
	by_descriptor++;
	return 0;
}

static const char *verdict(void)
{
	char name[] = "/tmp/capable-XXXXXX";
	int file = mkstemp(name), end;
	cap_t capabilities = cap_from_text("cap_chown=p");

	by_name = by_descriptor = 0;
	end = cap_set_file(name, capabilities);
	cap_free(capabilities);
	close(file);
	unlink(name);
	if (end != 0 || by_name + by_descriptor != 1)
		return "ODD: the capabilities are not set";
	return by_descriptor == 1 ? "FIXED" : "VULNERABLE";
}
