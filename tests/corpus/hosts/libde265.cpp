// CVE-2023-49468: a prediction mode that no picture has written (after an error in the stream) was used as an index.
// The mode is read by the library's function that draws the modes of a picture: an impossible one must count as mode 0.
//
// The library exports no way to make a picture, so one is put together here, of the few members that the function reads.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define private public
#include "libde265/image.h"
#undef private
#include "visualize.h"

#include "host.h"

static const int SIZE = 64, LOG2_SIZE = 6, LOG2_UNIT = 3;

static void draw(int mode, uint8_t *canvas)
{
	auto parameters = (seq_parameter_set *)calloc(1, sizeof(seq_parameter_set));
	auto picture = (de265_image *)calloc(1, sizeof(de265_image));
	const int units = SIZE >> LOG2_UNIT;

	parameters->pic_width_in_luma_samples = parameters->pic_height_in_luma_samples = SIZE;
	parameters->Log2MinCbSizeY = LOG2_UNIT;
	parameters->MinCbSizeY = 1 << LOG2_UNIT;
	parameters->PicWidthInMinCbsY = parameters->PicHeightInMinCbsY = units;
	picture->sps = std::shared_ptr<const seq_parameter_set>(parameters, free);
	if (!picture->cb_info.alloc(units, units, LOG2_UNIT) || !picture->intraPredMode.alloc(units, units, LOG2_UNIT))
		abort();
	picture->cb_info.clear();
	picture->intraPredMode.clear();
	picture->cb_info[0].log2CbSize = LOG2_SIZE;
	picture->cb_info[0].PredMode = MODE_INTRA;
	picture->cb_info[0].PartMode = PART_2Nx2N;
	picture->intraPredMode[0] = (uint8_t)mode;

	memset(canvas, 0, SIZE * SIZE);
	draw_intra_pred_modes(picture, canvas, SIZE, 255, 1);

	picture->sps.reset();
	free(picture->cb_info.data);
	free(picture->intraPredMode.data);
	free(picture);
}

static const char *verdict(void)
{
	static uint8_t planar[SIZE * SIZE], impossible[SIZE * SIZE], vertical[SIZE * SIZE];

	draw(0, planar);
	draw(26, vertical);
	draw(35, impossible);
	if (memcmp(planar, vertical, sizeof planar) == 0)
		return "ODD: all modes look the same";
	return memcmp(planar, impossible, sizeof planar) == 0 ? "FIXED" : "VULNERABLE";
}
