// 512-bit vectors, and products of pairs of bfloats.
#define LANES 16
#define REGISTERS 32
#define HAS_BFLOAT 1
#define HAS_BYTES 1
#define HAS_TILES 0
#include <immintrin.h>
#include "level.h"
namespace avx512_bf16 {
#include "everything.h"
}
extern const Level LEVEL_avx512_bf16 = {avx512_bf16::run, avx512_bf16::search, avx512_bf16::output_rows, avx512_bf16::packed_floats,
    avx512_bf16::pack, avx512_bf16::compact_floats, avx512_bf16::pack_compact,
    avx512_bf16::unpack_fixed};
