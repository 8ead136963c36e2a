// 512-bit vectors, and tiles of bfloats: they multiply those faster than vectors multiply bytes.
#define LANES 16
#define REGISTERS 32
#define HAS_BFLOAT 1
#define HAS_BYTES 0
#define HAS_TILES 1
#include <immintrin.h>
#include "level.h"
namespace amx {
#include "everything.h"
}
extern const Level LEVEL_amx = {amx::run, amx::search, amx::output_rows, amx::packed_floats,
    amx::pack, amx::compact_floats, amx::pack_compact,
    amx::unpack_fixed};
