/* CVE-2026-27171 in zlib: the checksum of a negative length never comes to an end. */
#include <stdio.h>
#include <string.h>
#include <windows.h>

#include <zlib.h>

static DWORD WINAPI negative(void *unused)
{
	crc32_combine(1, 2, -1);
	crc32_combine_gen(-1);
	return 0;
}

static const char *joined(void)
{
	const Bytef *text = (const Bytef *)"midflight";
	uLong whole = crc32(0, text, 9);
	uLong parts = crc32_combine(crc32(0, text, 3), crc32(0, text + 3, 6), 6);

	return parts == whole ? "joined" : "not joined";
}

int main(void)
{
	char line[64];

	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (strncmp(line, "negative", 8) == 0) {
			HANDLE thread = CreateThread(NULL, 0, negative, NULL, 0, NULL);
			puts(WaitForSingleObject(thread, 3000) == WAIT_OBJECT_0 ? "returned" : "loops");
			CloseHandle(thread);
		} else {
			puts(joined());
		}
		fflush(stdout);
	}
	return 0;
}
