/* CVE-2026-9672: a GIF whose data ends at once is filled with what the stack held. */
#include "host.h"

#include <string.h>

#include <gd.h>

/* Two pixels by two, four colours, and for data three codes of three bits: "clear" (4), a pixel (1), and "end" (5). */
static unsigned char gif[] = {
	'G', 'I', 'F', '8', '9', 'a', 2, 0, 2, 0, 0x81, 0, 0,
	0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3,
	',', 0, 0, 0, 0, 2, 0, 2, 0, 0,
	2, 2, (4 | 1 << 3 | 5 << 6) & 255, 5 >> 2, 0, ';',
};

/* Leave many times the number 2 below the end of the stack. */
static __attribute__((noinline)) void fill_stack(void)
{
	volatile int numbers[65536];

	for (size_t at = 0; at < sizeof numbers / sizeof *numbers; at++)
		numbers[at] = 2;
}

static const char *verdict(void)
{
	gdImagePtr image;
	int first, rest = 0;

	fill_stack();
	image = gdImageCreateFromGifPtr(sizeof gif, gif);
	if (image == NULL)
		return "ODD: the image is not read";
	first = gdImageGetPixel(image, 0, 0);
	for (int at = 1; at < 4; at++)
		rest += gdImageGetPixel(image, at % 2, at / 2) != 0;
	gdImageDestroy(image);
	if (first != 1)
		return "ODD: the first pixel is not read";
	return rest == 0 ? "FIXED" : "VULNERABLE";
}
