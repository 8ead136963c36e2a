// 512-bit vectors.
#define LANES 16
#define REGISTERS 32
#define HAS_BFLOAT 0
#define HAS_BYTES 0
#define HAS_TILES 0
#include <immintrin.h>
#include "level.h"
namespace avx512 {
#include "everything.h"
}
extern const Level LEVEL_avx512 = {avx512::run, avx512::search, avx512::output_rows, avx512::packed_floats,
    avx512::pack, avx512::compact_floats, avx512::pack_compact,
    avx512::unpack_fixed};
