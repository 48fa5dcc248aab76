/* GHSA-5qpq-xqfv-j9pg: a decoder that ran out of memory, and is used again, writes into a dictionary that it has not. */
#include "host.h"

#include <string.h>

#include <lzma.h>

static size_t most = SIZE_MAX;

static void *allocate(void *opaque, size_t count, size_t size)
{
	(void)opaque;
	return count * size > most ? NULL : malloc(count * size);
}

static void release(void *opaque, void *memory)
{
	(void)opaque;
	free(memory);
}

static const lzma_allocator allocator = { allocate, release, NULL };

/* "aaaaaaaa" in the format of LZMA alone. */
static size_t encode(uint8_t *out, size_t room, uint32_t dictionary)
{
	lzma_stream stream = LZMA_STREAM_INIT;
	lzma_options_lzma options;
	lzma_ret end;

	lzma_lzma_preset(&options, 0);
	options.dict_size = dictionary;
	if (lzma_alone_encoder(&stream, &options) != LZMA_OK)
		return 0;
	stream.next_in = (const uint8_t *)"aaaaaaaa";
	stream.avail_in = 8;
	stream.next_out = out;
	stream.avail_out = room;
	end = lzma_code(&stream, LZMA_FINISH);
	lzma_end(&stream);
	return end == LZMA_STREAM_END ? room - stream.avail_out : 0;
}

static lzma_ret decode(lzma_stream *stream, uint32_t dictionary)
{
	uint8_t packed[128], text[16];
	size_t length = encode(packed, sizeof packed, dictionary);

	if (length == 0 || lzma_alone_decoder(stream, UINT64_MAX) != LZMA_OK)
		return LZMA_PROG_ERROR;
	stream->next_in = packed;
	stream->avail_in = length;
	stream->next_out = text;
	stream->avail_out = sizeof text;
	return lzma_code(stream, LZMA_FINISH);
}

static void run_out_of_memory(void)
{
	lzma_stream stream = LZMA_STREAM_INIT;

	stream.allocator = &allocator;
	if (decode(&stream, 1 << 16) != LZMA_STREAM_END)
		_exit(1);
	most = 1 << 20;
	if (decode(&stream, 1 << 22) != LZMA_MEM_ERROR)
		_exit(2);
	most = SIZE_MAX;
	if (decode(&stream, 1 << 16) != LZMA_STREAM_END)
		_exit(3);
}

static const char *verdict(void)
{
	switch (in_child(run_out_of_memory, 1000)) {
	case CHILD_RETURNED:
		return "FIXED";
	case CHILD_DIED:
		return "VULNERABLE";
	default:
		return "ODD: the decoder loops";
	}
}
