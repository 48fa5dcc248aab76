/* CVE-2026-16517: the size of an encrypted entry overflows where the size of its key material is added. */
#include "host.h"

#include <stdint.h>
#include <string.h>

#include <archive.h>
#include <archive_entry.h>

static char output[65536];

static int begin_entry(int64_t size)
{
	struct archive *zip = archive_write_new();
	struct archive_entry *entry = archive_entry_new();
	size_t used;
	int end;

	archive_write_set_format_zip(zip);
	archive_write_zip_set_compression_store(zip);
	archive_write_set_options(zip, "zip:encryption=zipcrypt");
	archive_write_set_passphrase(zip, "secret");
	archive_write_open_memory(zip, output, sizeof output, &used);
	archive_entry_set_pathname(entry, "file");
	archive_entry_set_filetype(entry, AE_IFREG);
	archive_entry_set_size(entry, size);
	end = archive_write_header(zip, entry);
	archive_entry_free(entry);
	archive_write_fail(zip);
	archive_write_free(zip);
	return end;
}

static const char *verdict(void)
{
	if (begin_entry(8) != ARCHIVE_OK)
		return "ODD: a small entry cannot be written";
	return begin_entry(INT64_MAX) == ARCHIVE_FAILED ? "FIXED" : "VULNERABLE";
}
