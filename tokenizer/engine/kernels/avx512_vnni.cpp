// 512-bit vectors, and products of bytes.
#define LANES 16
#define REGISTERS 32
#define HAS_BFLOAT 0
#define HAS_BYTES 1
#define HAS_TILES 0
#include <immintrin.h>
#include "level.h"
namespace avx512_vnni {
#include "everything.h"
}
extern const Level LEVEL_avx512_vnni = {avx512_vnni::run, avx512_vnni::search, avx512_vnni::output_rows, avx512_vnni::packed_floats,
    avx512_vnni::pack, avx512_vnni::compact_floats, avx512_vnni::pack_compact,
    avx512_vnni::unpack_fixed};
