// 256-bit vectors, as nearly every x86-64 machine since 2013 has them.
#define LANES 8
#define REGISTERS 16
#define HAS_BFLOAT 0
#define HAS_BYTES 0
#define HAS_TILES 0
#include <immintrin.h>
#include "level.h"
namespace avx2 {
#include "everything.h"
}
extern const Level LEVEL_avx2 = {avx2::run, avx2::search, avx2::output_rows, avx2::packed_floats,
    avx2::pack, avx2::compact_floats, avx2::pack_compact,
    avx2::unpack_fixed};
