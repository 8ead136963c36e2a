// What Python and the kernels agree on: a program is a list of operations over buffers, and one call runs it over chunks of streams.
// tokenizer/engine/structures.py has the same structures. Nothing here owns memory: weights and states belong to the caller.
#pragma once
#include <stdint.h>

// Rows of one kind for every stream, channels last: `left` rows that came before, the chunk's own rows, `right` rows after its end.
struct Buffer {
    int32_t width;    // values in a row
    int32_t left;     // rows of the past
    int32_t right;    // rows beyond the end; only in programs that take whole files
    int32_t narrow;   // 1: bfloat16, 0: float
    int32_t whole;    // 1: holds the chunk of every stream; 0: only the block that its group works on
    int32_t mirrored; // 1: the start (and end) of a stream is mirrored, 0: zeros stand there
    int64_t state;    // where the past stands in a stream's state, in floats; -1: nowhere
};

enum Kind {
    MATRIX = 0,      // rows times weights: convolutions of any kind, linear layers
    LSTM = 1,        // recurrent layers, added to their input
    DEPTHWISE = 2,   // one filter for each channel, then layer norm
    LAYER_NORM = 3,  // over the values of a row
    GROUP_NORM = 4,  // over all rows of a stream, of one input or of the sum of two
    SPECTRUM = 5,    // log-magnitude and phase to real and imaginary parts
    OVERLAP_ADD = 6, // frames to samples
    FEW_COLUMNS = 7, // as MATRIX, a sum for each value; weights are plain rows
};

enum Activation { NONE = 0, ELU = 1, GELU = 2 };

// A part of what a window is made of: `length` consecutive values from a row on, counted from the window's own first row.
struct Segment {
    int32_t buffer, row, length;
};

struct Operation {
    int32_t kind, activation;
    int32_t group;            // operations of a group run block by block
    int32_t block;            // input rows of the whole program in a block; 0: all of all streams, -1: all of one stream
    int32_t input, second;    // buffers; second: what is added, or -1
    int32_t output, active;   // buffers for the result as it is and after the activation; -1: not wanted
    int32_t num_segments;     // MATRIX
    int32_t stride, up;       // input rows from one window to the next; output rows of each
    int32_t extra, trim;      // windows beyond the input, and output rows dropped at the start (whole files only)
    int32_t columns;          // values of a result, over all `up` rows
    int32_t statistics;       // which sums the result goes into, for GROUP_NORM; -1: none
    int32_t second_statistics;
    int32_t layers;           // LSTM
    int32_t length;           // DEPTHWISE: taps. SPECTRUM: bins. OVERLAP_ADD: hop, in samples
    int32_t recurrent_bytes;  // LSTM: whether the compact weights are bytes
    int32_t windows, units;   // MATRIX: windows multiplied together, see winograd.h, and units of each; 0: one by one
    int64_t state;            // LSTM: hidden and cell state, [layers][2][width]
    const Segment *segments;
    const void *weights;      // packed, but for FEW_COLUMNS and DEPTHWISE
    const void *unit_weights; // of windows multiplied together: mixed and packed, product after product
    const float *unit_scales; // [products, columns], where those are integers, padded; null: they are floats or bfloats
    const float *column_scales; // MATRIX: of weights that are integers, padded; null: they are floats or bfloats
    const float *bias;        // padded to whole vectors
    const float *const *layer_scales; // LSTM: as column_scales, of the input weights; null in a layer without integers
    const void *const *layer_weights; // LSTM: packed input and recurrent weights, layer by layer
    const void *const *layer_compact; // recurrent weights in fewer bytes, or null; bytes stand for themselves, others beside them
    const float *const *layer_biases;
    const float *gain, *shift;        // of norms, and of the second input's
    const float *second_gain, *second_shift;
};

struct Call {
    const Operation *operations;
    const Buffer *buffers; // the first is the input, the last the output
    int32_t num_operations, num_buffers;
    int32_t num_statistics;
    int32_t start; // 1: streams begin here
    int32_t narrow_input; // 1: the input is of bfloats, as its buffer is
    int64_t streams, rows; // of the input, channels last
    int64_t state_size;    // floats of a stream
    const float *input;
    float *output;
    const float *state;
    float *next_state;
};

struct Search { // residual vector quantization of frames
    const void *const *packed; // -2 times the entries less their centre, level by level: of floats, bytes or bfloats, whole panels
    int32_t narrow;            // 1: of bfloats
    int32_t levels, entries, width;
    int64_t pitch;             // entries of a level with those that fill its last panel
    const float *norms, *lengths;         // [K, pitch]: squared, of entries less their centre, endless beyond them; of offsets
    const float *centres, *codebooks;     // [K, D], [K, V, D]
    const int32_t *starts;                // [K, pitch]: of sums of bytes, for frames whose bytes are 128 too large
    const float *entry_scales;            // [K, pitch]: of bytes; null for none
    const float *longest, *roundings;     // [K]: of a level's offsets; the largest rounding of one, as a share of its length
    int64_t frames;
    const float *latents; // [frames, D]
    int64_t *codes;       // [frames, levels]
};
