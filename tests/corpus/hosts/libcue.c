/* CVE-2023-43641: the number of an INDEX line was checked at its upper end alone, and one that overflows to -1 wrote
 * before the array: to the pointer of the track's remarks, which stands there. */
#include "host.h"

#include <libcue.h>

static const char SHEET[] = "FILE \"a.wav\" WAVE\n"
			    "TRACK 01 AUDIO\n"
			    "INDEX 01 00:00:05\n"
			    "INDEX 4294967295 00:00:07\n";

/* The pointer is 7 after it: freeing the sheet would crash, so all of it is done in a child. */
static void parse(void)
{
	Cd *sheet = cue_parse_string(SHEET);
	Track *track = sheet == NULL ? NULL : cd_get_track(sheet, 1);

	if (track == NULL || track_get_start(track) != 5)
		_exit(2);
	_exit(track_get_rem(track) == (Rem *)7 ? 1 : 0);
}

static const char *verdict(void)
{
	return in_child(parse, 1000) == CHILD_RETURNED ? "FIXED" : "VULNERABLE";
}
