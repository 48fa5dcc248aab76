// CVE-2023-49468: a prediction mode that no picture has written (after an error in the stream) was used as an index.
// The mode is read by the library's function that draws the modes of a picture: an impossible one must count as mode 0.
#include <cstring>
#include <memory>

#include "host.h"

#include "libde265/image.h"
#include "libde265/sps.h"
#include "visualize.h"

static const int SIZE = 64;

static void draw(int mode, uint8_t *canvas)
{
	auto parameters = std::make_shared<seq_parameter_set>();
	de265_image picture;

	parameters->set_defaults();
	parameters->set_resolution(SIZE, SIZE);
	parameters->set_CB_log2size_range(3, 6);
	parameters->set_TB_log2size_range(2, 5);
	parameters->compute_derived_values();
	picture.alloc_image(SIZE, SIZE, de265_chroma_420, parameters, true, nullptr, nullptr, 0, nullptr, false);
	picture.set_log2CbSize(0, 0, 6, true);
	picture.set_pred_mode(0, 0, 6, MODE_INTRA);
	picture.set_PartMode(0, 0, PART_2Nx2N);
	picture.set_IntraPredMode(0, 0, 6, (enum IntraPredMode)mode);
	memset(canvas, 0, SIZE * SIZE);
	draw_intra_pred_modes(&picture, canvas, SIZE, 255, 1);
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
