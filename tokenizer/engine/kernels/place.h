// Where the buffers of a running program lie, and what stands before and after the rows of a chunk.

struct Place {
    char *data;
    int64_t pitch;   // bytes of a stream
    int64_t row;     // bytes of a row
    int64_t rows;    // of each stream, in this block
    int64_t before;  // rows of earlier blocks that stand before them
    int64_t stream;  // the first one's place here
    bool padded;     // whether what stands around the rows has been filled in
};

struct Program {
    const Call *call;
    Place places[MOST_BUFFERS];
    Arena *arena;
    double *statistics; // [slots, streams, 3]: sum, sum of squares, count
    float *scratch;
    void *mixed; // mixtures of rows, see winograd.h, or rows as integers
    int64_t first_stream, streams; // of this block
    bool first_block;

    const Buffer &buffer(int index) const { return call->buffers[index]; }
    char *at(int index, int64_t stream, int64_t row) const { // row 0 is the first one after the past
        const Place &p = places[index];
        return p.data + (p.stream + stream) * p.pitch + (buffer(index).left + p.before + row) * p.row;
    }
    double *sums(int slot, int64_t stream) const { return statistics + (slot * call->streams + first_stream + stream) * 3; }
};

static int64_t rows_after(const Operation &op, int64_t rows) {
    if (op.kind == MATRIX || op.kind == FEW_COLUMNS) return (rows + op.stride - 1) / op.stride * op.up;
    if (op.kind == SPECTRUM) return rows * op.up;
    if (op.kind == OVERLAP_ADD) return rows / op.stride * op.length;
    return rows;
}

static int main_input(const Operation &op) { return op.kind == MATRIX || op.kind == FEW_COLUMNS ? op.segments[0].buffer : op.input; }

// Rows of every buffer where the input has so many.
static void measure(const Call &call, int64_t input_rows, int64_t *rows) {
    for (int i = 0; i < call.num_buffers; i++) rows[i] = 0;
    rows[0] = input_rows;
    for (int i = 0; i < call.num_operations; i++) {
        const Operation &op = call.operations[i];
        const int64_t after = rows_after(op, rows[main_input(op)]);
        if (op.output >= 0) rows[op.output] = after;
        if (op.active >= 0) rows[op.active] = after;
    }
}

static int64_t output_rows(const Call &call, int64_t input_rows) {
    int64_t rows[MOST_BUFFERS];
    measure(call, input_rows, rows);
    return rows[call.num_buffers - 1];
}

// Mirror images or zeros around the rows of a buffer, once they are known. False: too few rows to be mirrored.
static bool pad(Program &program, int index, int stride) {
    Place &place = program.places[index];
    const Buffer &buffer = program.buffer(index);
    if (place.padded) return true;
    place.padded = true;
    const bool whole_file = buffer.right > 0 || place.rows % stride != 0;
    const int64_t left = program.call->start && program.first_block ? buffer.left : 0;
    const int64_t right = whole_file ? buffer.right + (stride - place.rows % stride) % stride : 0;
    if (buffer.mirrored && (left >= place.rows || right >= place.rows) && left + right > 0) return false;
    for (int64_t stream = 0; stream < program.streams; stream++) {
        char *first = program.at(index, stream, 0), *last = program.at(index, stream, place.rows - 1);
        for (int64_t i = 1; i <= left; i++)
            if (buffer.mirrored) memcpy(first - i * place.row, first + i * place.row, place.row);
            else memset(first - i * place.row, 0, place.row);
        for (int64_t i = 1; i <= right; i++)
            if (buffer.mirrored) memcpy(last + i * place.row, last - i * place.row, place.row);
            else memset(last + i * place.row, 0, place.row);
    }
    return true;
}

static void copy_values(const Buffer &buffer, float *floats, char *values, int64_t count, bool into_state) {
    if (!buffer.narrow) {
        memcpy(into_state ? (char *)floats : values, into_state ? values : (char *)floats, count * 4);
        return;
    }
    for (int64_t i = 0; i < count; i += LANES) {
        const int part = count - i < LANES ? (int)(count - i) : LANES;
        if (into_state) store(floats + i, load((bfloat *)values + i, part), part);
        else store((bfloat *)values + i, load(floats + i, part), part);
    }
}

// The past of some streams from their states, before a chunk, or into them, after it.
static void exchange_past(Program &program, int index, bool into_state) {
    const Buffer &buffer = program.buffer(index);
    const Call &call = *program.call;
    if (buffer.state < 0) return;
    for (int64_t stream = 0; stream < program.streams; stream++) {
        const int64_t offset = (program.first_stream + stream) * call.state_size + buffer.state;
        const int64_t row = into_state ? program.places[index].rows - buffer.left : -buffer.left;
        float *floats = into_state ? call.next_state + offset : (float *)call.state + offset;
        copy_values(buffer, floats, program.at(index, stream, row), (int64_t)buffer.left * buffer.width, into_state);
    }
}
