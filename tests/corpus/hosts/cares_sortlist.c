/* CVE-2022-4904: an address in the sort list was copied into a buffer of 16 bytes, whatever its length. Seen with 16
 * characters, of which only the final zero is too much; in a child, since that zero overwrites something. */
#include "host.h"

#include <ares.h>

static ares_channel channel;

static void set_long(void)
{
	_exit(ares_set_sortlist(channel, "111.111.111.111*/16") == ARES_EBADSTR ? 0 : 1);
}

static const char *verdict(void)
{
	enum child_end end;
	int good;

	if (ares_library_init(ARES_LIB_INIT_ALL) != ARES_SUCCESS || ares_init(&channel) != ARES_SUCCESS)
		return "ODD: no channel";
	good = ares_set_sortlist(channel, "130.155.160.0/255.255.240.0") == ARES_SUCCESS;
	end = in_child(set_long, 1000);
	ares_destroy(channel);
	ares_library_cleanup();
	if (!good || end == CHILD_LOOPED)
		return "ODD: a good sort list is not taken, or a bad one not answered";
	return end == CHILD_RETURNED ? "FIXED" : "VULNERABLE";
}
