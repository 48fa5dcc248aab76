// CVE-2023-52339: reading more than there is, where the sum of position and size overflows, reads beyond the buffer.
#include "host.h"

#include <cstdint>
#include <cstring>

#include <ebml/MemIOCallback.h>

static void read_too_much(void)
{
	libebml::MemIOCallback memory;
	static unsigned char target[16];

	memory.write("sixteen letters", 16);
	memory.setFilePointer(8);
	if (memory.read(target, SIZE_MAX - 4) != 8)
		_exit(1);
}

static const char *verdict(void)
{
	libebml::MemIOCallback memory;
	unsigned char target[16] = { 0 };

	memory.write("sixteen letters", 16);
	memory.setFilePointer(8);
	if (memory.read(target, 16) != 8 || std::memcmp(target, "letters", 8) != 0)
		return "ODD: what there is is not read";
	switch (in_child(read_too_much, 1000)) {
	case CHILD_RETURNED:
		return "FIXED";
	case CHILD_DIED:
		return "VULNERABLE";
	default:
		return "ODD: reading loops";
	}
}
