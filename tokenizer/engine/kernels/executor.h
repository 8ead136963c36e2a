// Running a program: its groups one after the other, each for a few streams and rows at a time, so that what one operation
// writes is still in the cache when the next one reads it.

template <class Value> static void multiply_as(Program &program, const Operation &op) {
    constexpr bool NARROW = sizeof(Value) == 2;
    if (op.kind == LSTM) Lstm<Value>(program, op).run();
    else if (op.kind == FEW_COLUMNS) few_columns<NARROW>(program, op);
    else matrix_layer<NARROW>(program, op);
}

static void perform(Program &program, const Operation &op) {
    switch (op.kind) {
    case MATRIX:
    case FEW_COLUMNS:
    case LSTM:
#if HAS_BFLOAT // elsewhere values are never narrow
        if (program.buffer(main_input(op)).narrow) return multiply_as<bfloat>(program, op);
#endif
        return multiply_as<float>(program, op);
    case DEPTHWISE: return depthwise(program, op);
    case LAYER_NORM: return layer_norm(program, op);
    case GROUP_NORM: return op.second >= 0 ? normalize_group<true>(program, op) : normalize_group<false>(program, op);
    case SPECTRUM: return spectrum(program, op);
    case OVERLAP_ADD: return overlap_add(program, op);
    }
}

static bool pad_inputs(Program &program, const Operation &op) {
    if (op.num_segments == 0) return pad(program, op.input, 1);
    for (int i = 0; i < op.num_segments; i++)
        if (!pad(program, op.segments[i].buffer, op.stride)) return false;
    return true;
}

struct Group {
    int begin, end;  // operations
    int64_t streams, rows; // of the input, in a block
};

static Group group_from(const Call &call, int begin) {
    const Operation &first = call.operations[begin];
    Group group = {begin, begin, call.streams, call.rows};
    while (group.end < call.num_operations && call.operations[group.end].group == first.group) group.end++;
    if (first.block < 0) group.streams = 1; // whole files, one at a time
    if (first.block > 0) {
        group.rows = call.rows < first.block ? call.rows : first.block;
        group.streams = first.block / (call.rows > 0 ? call.rows : 1);
        group.streams = group.streams < 1 ? 1 : group.streams > call.streams ? call.streams : group.streams;
    }
    return group;
}

// Buffers that a group fills and that no other group reads.
template <class Each> static void each_own_buffer(const Program &program, const Group &group, Each each) {
    for (int i = group.begin; i < group.end; i++) {
        const Operation &op = program.call->operations[i];
        if (op.output >= 0 && !program.buffer(op.output).whole) each(op.output);
        if (op.active >= 0 && !program.buffer(op.active).whole) each(op.active);
    }
}

static int run_block(Program &program, const Group &group, int64_t first_row, int64_t num_rows) {
    const Call &call = *program.call;
    int64_t rows[MOST_BUFFERS], before[MOST_BUFFERS];
    measure(call, num_rows, rows);
    measure(call, first_row, before);
    program.first_block = first_row == 0;
    for (int i = 0; i < call.num_buffers; i++) {
        Place &place = program.places[i];
        const bool whole = program.buffer(i).whole;
        place.rows = rows[i];
        place.before = whole && first_row > 0 ? before[i] : 0;
        place.stream = whole ? program.first_stream : 0;
        if (first_row == 0) place.padded = false;
    }
    for (int i = group.begin; i < group.end; i++) {
        if (!pad_inputs(program, call.operations[i])) return TOO_SHORT;
        perform(program, call.operations[i]);
    }
    return program.arena->failed ? NO_MEMORY : DONE;
}

// The last rows of a block are the past of the next one.
static void roll(Program &program, int index) {
    const Buffer &buffer = program.buffer(index);
    for (int64_t stream = 0; stream < program.streams; stream++) {
        char *past = program.at(index, stream, -buffer.left);
        memmove(past, program.at(index, stream, program.places[index].rows - buffer.left), buffer.left * program.places[index].row);
    }
}

static int run_group(Program &program, const Group &group) {
    const Call &call = *program.call;
    for (int64_t stream = 0; stream < call.streams; stream += group.streams) {
        program.first_stream = stream;
        program.streams = call.streams - stream < group.streams ? call.streams - stream : group.streams;
        each_own_buffer(program, group, [&](int index) {
            program.places[index].before = program.places[index].stream = 0;
            if (!call.start) exchange_past(program, index, false);
        });
        for (int64_t row = 0; row < call.rows; row += group.rows) {
            const int64_t count = call.rows - row < group.rows ? call.rows - row : group.rows;
            const int result = run_block(program, group, row, count);
            if (result != DONE) return result;
            if (row + count < call.rows) each_own_buffer(program, group, [&](int index) { roll(program, index); });
        }
        each_own_buffer(program, group, [&](int index) { exchange_past(program, index, true); });
    }
    return DONE;
}

// Memory for the buffers of a group that takes whole files: one that no operation reads any more makes room for another.
struct Slots {
    char *memory[MOST_BUFFERS];
    int64_t sizes[MOST_BUFFERS];
    bool taken[MOST_BUFFERS];
    int count = 0;

    char *take(Arena &arena, int64_t bytes) {
        int slot = 0;
        while (slot < count && (taken[slot] || sizes[slot] < bytes)) slot++;
        if (slot == count) {
            memory[count] = arena.take(bytes);
            sizes[count++] = bytes;
        }
        taken[slot] = true;
        return memory[slot];
    }
    void give_back(const char *data) {
        for (int slot = 0; slot < count; slot++)
            if (memory[slot] == data) taken[slot] = false;
    }
};

static bool reads(const Operation &op, int buffer) {
    bool found = op.num_segments == 0 && op.input == buffer;
    for (int i = 0; i < op.num_segments; i++) found = found || op.segments[i].buffer == buffer;
    return found || op.second == buffer;
}

// Rows that are cut off at a start, and those that fill the last stride of a file.
static int64_t guard_rows(const Call &call, const int64_t *rows) {
    int64_t guard = 0;
    for (int i = 0; i < call.num_operations; i++) {
        const Operation &op = call.operations[i];
        if (op.extra > 0 && op.up > guard) guard = op.up;
        if (op.num_segments > 0 && rows[main_input(op)] % op.stride != 0 && op.stride > guard) guard = op.stride;
    }
    return guard;
}

static void lay_out_buffer(Program &program, int index, int64_t rows, int64_t guard) {
    const Buffer &buffer = program.buffer(index);
    Place &place = program.places[index];
    place.row = (int64_t)buffer.width * (buffer.narrow ? 2 : 4);
    place.pitch = (buffer.left + rows + buffer.right + 2 * guard) * place.row;
}

// Buffers of one block, each in memory of its own where their last rows are the past of the next block.
static void lay_out_group(Program &program, const Group &group, int64_t guard) {
    const Call &call = *program.call;
    const bool whole_files = call.operations[group.begin].block < 0;
    int64_t rows[MOST_BUFFERS];
    measure(call, group.rows, rows);
    Slots slots;
    bool given_back[MOST_BUFFERS] = {};
    for (int i = group.begin; i < group.end; i++) {
        each_own_buffer(program, Group{i, i + 1, 0, 0}, [&](int index) {
            lay_out_buffer(program, index, rows[index], guard);
            const int64_t bytes = program.places[index].pitch * group.streams;
            program.places[index].data = slots.take(*program.arena, bytes) + guard * program.places[index].row;
        });
        each_own_buffer(program, Group{group.begin, i + 1, 0, 0}, [&](int index) {
            bool needed = !whole_files || given_back[index];
            for (int later = i + 1; later < group.end; later++) needed = needed || reads(call.operations[later], index);
            if (needed) return;
            slots.give_back(program.places[index].data - guard * program.places[index].row);
            given_back[index] = true;
        });
    }
}

// Memory of every buffer: of all streams where groups share it, otherwise of one block.
static void lay_out(Program &program) {
    const Call &call = *program.call;
    int64_t rows[MOST_BUFFERS];
    measure(call, call.rows, rows);
    const int64_t guard = guard_rows(call, rows);
    for (int i = 0; i < call.num_buffers; i++) program.places[i] = {};
    for (int begin = 0; begin < call.num_operations;) {
        const Group group = group_from(call, begin);
        lay_out_group(program, group, guard);
        begin = group.end;
    }
    for (int i = 0; i < call.num_buffers - 1; i++) {
        if (!call.buffers[i].whole) continue;
        lay_out_buffer(program, i, rows[i], guard);
        program.places[i].rows = rows[i];
        program.places[i].data = program.arena->take(program.places[i].pitch * call.streams) + guard * program.places[i].row;
    }
    Place &output = program.places[call.num_buffers - 1];
    output.rows = rows[call.num_buffers - 1];
    output.row = call.buffers[call.num_buffers - 1].width * (call.buffers[call.num_buffers - 1].narrow ? 2 : 4);
    output.pitch = output.rows * output.row;
    output.data = (char *)call.output;
}

// What the largest operation needs for its mixtures, or for its rows as integers.
static int64_t mixed_bytes(const Call &call) {
    int64_t most = 0;
    const auto need = [&](int64_t bytes) { most = bytes > most ? bytes : most; };
    for (int i = 0; i < call.num_operations; i++) {
        const Operation &op = call.operations[i];
        if (op.kind == MATRIX && op.column_scales) need(IntegerShape(call, op).bytes());
        if (op.kind == LSTM && op.layer_scales[0]) need(IntegerShape(call.buffers[op.input].width).bytes());
        if (op.windows) need(MixedMemory(call, op).bytes());
    }
    return most;
}

static int run(const Call &call, Arena &arena) {
    if (call.num_buffers > MOST_BUFFERS) return NO_MEMORY;
    arena.begin();
    Program program;
    program.call = &call;
    program.arena = &arena;
    lay_out(program);
    program.scratch = (float *)arena.take(SHARED_ROWS * PANEL_FLOATS * 4 + 65536);
    program.mixed = arena.take(mixed_bytes(call));
    const int64_t statistics = call.num_statistics * call.streams * 3 * (int64_t)sizeof(double);
    program.statistics = (double *)arena.take(statistics);
    if (arena.failed) return NO_MEMORY;
    memset(program.statistics, 0, statistics);
    program.first_stream = 0;
    program.streams = call.streams;
    for (int64_t stream = 0; stream < call.streams; stream++) {
        const int64_t values = call.rows * call.buffers[0].width;
        if (call.narrow_input) memcpy(program.at(0, stream, 0), (const bfloat *)call.input + stream * values, values * sizeof(bfloat));
        else copy_values(call.buffers[0], (float *)call.input + stream * values, program.at(0, stream, 0), values, false);
    }
    for (int i = 0; i < call.num_buffers - 1; i++)
        if (call.buffers[i].whole && !call.start) exchange_past(program, i, false);
    for (int begin = 0; begin < call.num_operations;) {
        const Group group = group_from(call, begin);
        const int result = run_group(program, group);
        if (result != DONE) return result;
        begin = group.end;
    }
    int64_t rows[MOST_BUFFERS];
    measure(call, call.rows, rows);
    program.first_stream = 0;
    program.streams = call.streams;
    for (int i = 0; i < call.num_buffers - 1; i++) {
        Place &place = program.places[i];
        place.rows = rows[i], place.before = place.stream = 0;
        if (call.buffers[i].whole) exchange_past(program, i, true);
    }
    return DONE;
}
