/* CVE-2023-7104: a changeset that ends within a number is read beyond its end. */
#define SQLITE_ENABLE_SESSION 1
#define SQLITE_ENABLE_PREUPDATE_HOOK 1
#include "host.h"

#include <string.h>
#include <sys/mman.h>

#include <sqlite3.h>

/* One insertion into a table "t" of one column, which is its key: the value is a number (1) of eight bytes. */
static const unsigned char changeset[] = { 'T', 1, 1, 't', 0, SQLITE_INSERT, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7 };

static int read_changes(const unsigned char *at, int length)
{
	sqlite3_changeset_iter *changes = NULL;
	int end = sqlite3changeset_start(&changes, length, (void *)at);

	if (end == SQLITE_OK)
		end = sqlite3changeset_next(changes);
	sqlite3changeset_finalize(changes);
	return end;
}

/* The changeset without its last `missing` bytes, where the memory that may be read ends. */
static int read_at_the_edge(int missing)
{
	long page = sysconf(_SC_PAGESIZE);
	int length = (int)sizeof changeset - missing, end;
	unsigned char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	mprotect(memory + page, page, PROT_NONE);
	memcpy(memory + page - length, changeset, length);
	end = read_changes(memory + page - length, length);
	munmap(memory, 2 * page);
	return end;
}

static void read_truncated(void)
{
	if (read_at_the_edge(8) != SQLITE_CORRUPT)
		_exit(1);
}

static const char *verdict(void)
{
	if (read_at_the_edge(0) != SQLITE_ROW)
		return "ODD: a good changeset is not read";
	switch (in_child(read_truncated, 1000)) {
	case CHILD_RETURNED:
		return "FIXED";
	case CHILD_DIED:
		return "VULNERABLE";
	default:
		return "ODD: the library loops";
	}
}
