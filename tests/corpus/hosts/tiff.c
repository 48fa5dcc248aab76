/* CVE-2026-4775: the step from one group of rows to the next was computed in 32 bits, so in a very wide image it led
 * before the raster. The image has one tile that is there; the raster has 48 GiB of addresses and only that tile's pages. */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "host.h"

#include <tiffio.h>

enum { WIDTH = 3 << 28, TILE_WIDTH = 1 << 16, HEIGHT = 16, TILE_BYTES = TILE_WIDTH * HEIGHT / 16 * 18 };

static const char PATH[] = "wide.tif";

static int write_image(void)
{
	static unsigned char tile[TILE_BYTES];
	TIFF *image = TIFFOpen(PATH, "w8");
	int good;

	memset(tile, 200, sizeof tile);
	TIFFSetField(image, TIFFTAG_IMAGEWIDTH, WIDTH);
	TIFFSetField(image, TIFFTAG_IMAGELENGTH, HEIGHT);
	TIFFSetField(image, TIFFTAG_TILEWIDTH, TILE_WIDTH);
	TIFFSetField(image, TIFFTAG_TILELENGTH, HEIGHT);
	TIFFSetField(image, TIFFTAG_BITSPERSAMPLE, 8);
	TIFFSetField(image, TIFFTAG_SAMPLESPERPIXEL, 3);
	TIFFSetField(image, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
	TIFFSetField(image, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_YCBCR);
	TIFFSetField(image, TIFFTAG_YCBCRSUBSAMPLING, 4, 4);
	TIFFSetField(image, TIFFTAG_ORIENTATION, ORIENTATION_BOTLEFT);
	good = TIFFWriteRawTile(image, 0, tile, sizeof tile) == sizeof tile;
	TIFFClose(image);
	return good;
}

static const char *verdict(void)
{
	const size_t pixels = (size_t)WIDTH * HEIGHT, around = (size_t)16 << 30, all = pixels * 4 + 2 * around;
	const char *seen = "ODD: the first row is not there";
	char *place = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	TIFF *image;

	if (place == MAP_FAILED || !write_image())
		return "ODD: no raster, or no image";
	TIFFSetErrorHandler(NULL);
	TIFFSetWarningHandler(NULL);
	image = TIFFOpen(PATH, "r");
	if (image != NULL) {
		uint32_t *raster = (uint32_t *)(place + around);

		TIFFReadRGBAImageOriented(image, WIDTH, HEIGHT, raster, ORIENTATION_BOTLEFT, 1);
		if (raster[0] != 0)
			seen = raster[(size_t)WIDTH * 4] != 0 && raster[(size_t)WIDTH * 12] != 0 ? "FIXED" : "VULNERABLE";
		TIFFClose(image);
	}
	munmap(place, all);
	unlink(PATH);
	return seen;
}
