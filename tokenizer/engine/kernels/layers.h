// Operations on the rows of a block, one function each.

// Writes the results of an operation, as they are and after its activation.
struct Writer {
    char *output = nullptr, *active = nullptr;
    int64_t output_pitch = 0, active_pitch = 0, output_step = 0, active_step = 0;
    bool narrow_output = false, narrow_active = false;
    int activation;

    struct Row {
        char *output, *active;
    };

    Writer(const Program &program, const Operation &op, int up = 1, int trim = 0) : activation(op.activation) {
        if (op.output >= 0) {
            output = program.at(op.output, 0, -trim);
            output_pitch = program.places[op.output].pitch, output_step = program.places[op.output].row * up;
            narrow_output = program.buffer(op.output).narrow;
        }
        if (op.active >= 0) {
            active = program.at(op.active, 0, -trim);
            active_pitch = program.places[op.active].pitch, active_step = program.places[op.active].row * up;
            narrow_active = program.buffer(op.active).narrow;
        }
    }
    Row row(int64_t stream, int64_t step) const {
        return {output + stream * output_pitch + step * output_step, active + stream * active_pitch + step * active_step};
    }
    void write(const Row &row, int column, int count, Floats value) const {
        if (output) {
            if (narrow_output) store((bfloat *)row.output + column, value, count);
            else store((float *)row.output + column, value, count);
        }
        if (active) {
            if (narrow_active) store((bfloat *)row.active + column, activated<true>(value, activation), count);
            else store((float *)row.active + column, activated<false>(value, activation), count);
        }
    }
};

struct Reader {
    const char *data;
    int64_t pitch, step;
    bool narrow;

    Reader(const Program &program, int buffer)
        : data(program.at(buffer, 0, 0)), pitch(program.places[buffer].pitch), step(program.places[buffer].row),
          narrow(program.buffer(buffer).narrow) {}
    const char *row(int64_t stream, int64_t row) const { return data + stream * pitch + row * step; }
    Floats read(const char *row, int column, int count) const {
        return narrow ? load((const bfloat *)row + column, count) : load((const float *)row + column, count);
    }
};

static Rows windows(const Program &program, const Operation &op) {
    Rows rows;
    const int64_t input = program.places[main_input(op)].rows;
    rows.steps = (input + op.stride - 1) / op.stride + op.extra;
    for (int i = 0; i < op.num_segments; i++) {
        const Segment &segment = op.segments[i];
        const Place &place = program.places[segment.buffer];
        const Buffer &buffer = program.buffer(segment.buffer);
        rows.add(program.at(segment.buffer, 0, segment.row), place.pitch, op.stride * place.row,
                 buffer.narrow ? segment.length / 2 : segment.length);
    }
    return rows;
}

template <bool NARROW> static void few_columns(const Program &program, const Operation &op) {
    const Rows rows = windows(program, op);
    const int words = rows.total_words();
    for (int64_t stream = 0; stream < program.streams; stream++)
        for (int64_t step = 0; step < rows.steps; step++)
            for (int column = 0; column < op.columns; column++) {
                const uint32_t *weights = (const uint32_t *)op.weights + (int64_t)column * words;
                const float value = row_times<NARROW>(rows, stream, step, weights) + op.bias[column];
                ((float *)program.at(op.output, stream, step))[column] = value;
            }
}

// Windows times weights, some together where they come so; `finish` gets the sums as Finished has it.
template <bool NARROW, class Finish>
static void multiply_windows(const Program &program, const Operation &op, const Rows &rows, const Packed &weights, const Finish &finish) {
    int64_t ahead = 0; // windows before those that are multiplied
    const auto finish_there = [&](const float *tile, int64_t first, int size, int column, int vectors) {
        finish(tile, ahead + first, size, column, vectors);
    };
    const auto one_by_one = [&](const Rows &some) {
#if HAS_INTEGERS
        if (op.column_scales) return integer_matrix(program, IntegerShape(*program.call, op), some, {weights, op.column_scales, op.bias}, finish_there);
#endif
        matrix<NARROW>(some, some.steps * program.streams, weights, Finished<decltype(finish_there)>{op.bias, program.scratch, finish_there});
    };
    const int64_t rest = op.windows ? rows.steps % op.windows : 0; // of a whole file, which comes alone
    if (op.windows == 0 || rows.steps < op.windows || (rest && program.streams > 1)) return one_by_one(rows);
    Rows whole = rows, last = rows;
    whole.steps -= rest;
    winograd_matrix<NARROW>(program, op, whole, finish_there);
    if (rest == 0) return;
    last.base[0] += whole.steps * rows.step_pitch[0];
    last.steps = rest;
    ahead = whole.steps;
    one_by_one(last);
}

// What a group norm needs to know of some rows. Programs that have one work on one stream at a time.
static void add_sums(const Program &program, const Operation &op, Floats total, Floats squares, int64_t count) {
    double *sums = program.sums(op.statistics, 0);
    sums[0] += sum(total), sums[1] += sum(squares), sums[2] += (double)count;
}

struct Nothing {};
template <class Value> constexpr bool WANTED = true;
template <> constexpr bool WANTED<Nothing> = false;

// The usual case, with nothing left to decide inside its loops: whole vectors, that go to one or two buffers.
template <class Output, class Active, bool NARROW, int ACTIVATION = ELU, bool SUMMED = false>
static void write_vectors(const Program &program, const Operation &op, const Rows &rows, const Packed &weights, const Writer &writer) {
    const auto finish = [&](const float *tile, int64_t first, int size, int column, int vectors) {
        int64_t stream = rows.stream_of(first), step = first - stream * rows.steps;
        Floats total = {}, squares = {};
        Writer::Row to = writer.row(stream, step);
        for (int i = 0; i < size; i++) {
            for (int v = 0; v < vectors; v++) {
                const Floats value = load(tile + (i * vectors + v) * LANES);
                if constexpr (WANTED<Output>) store((Output *)to.output + column + v * LANES, value);
                if constexpr (WANTED<Active>)
                    store((Active *)to.active + column + v * LANES, activated<sizeof(Active) == 2>(value, ACTIVATION));
                if constexpr (SUMMED) total += value, squares += value * value;
            }
            to.output += writer.output_step, to.active += writer.active_step;
            if (++step == rows.steps) to = writer.row(++stream, step = 0);
        }
        if constexpr (SUMMED) add_sums(program, op, total, squares, (int64_t)size * vectors * LANES);
    };
    multiply_windows<NARROW>(program, op, rows, weights, finish);
}

// Whether one of the usual cases did it.
template <bool NARROW>
static bool write_usual(const Program &program, const Operation &op, const Rows &rows, const Packed &weights, const Writer &writer) {
    if (op.columns % LANES != 0 || op.second >= 0) return false;
    const int output = writer.output ? 1 + writer.narrow_output : 0, active = writer.active ? 1 + writer.narrow_active : 0;
    if (op.statistics >= 0) {
        if (output != 1 || active != 0) return false;
        return write_vectors<float, Nothing, NARROW, NONE, true>(program, op, rows, weights, writer), true;
    }
    if (writer.active && op.activation == GELU) {
        if (output != 0) return false;
        return active == 1 ? write_vectors<Nothing, float, NARROW, GELU>(program, op, rows, weights, writer)
                           : write_vectors<Nothing, bfloat, NARROW, GELU>(program, op, rows, weights, writer), true;
    }
    switch (output * 3 + active) {
    case 1: return write_vectors<Nothing, float, NARROW>(program, op, rows, weights, writer), true;
    case 2: return write_vectors<Nothing, bfloat, NARROW>(program, op, rows, weights, writer), true;
    case 3: return write_vectors<float, Nothing, NARROW>(program, op, rows, weights, writer), true;
    case 4: return write_vectors<float, float, NARROW>(program, op, rows, weights, writer), true;
    case 8: return write_vectors<bfloat, bfloat, NARROW>(program, op, rows, weights, writer), true;
    }
    return false;
}

template <bool NARROW> static void matrix_layer(const Program &program, const Operation &op) {
    const Rows rows = windows(program, op);
    const Packed weights = {(const float *)op.weights, op.columns, rows.total_words()};
    const Writer writer(program, op, op.up, op.trim);
    if (write_usual<NARROW>(program, op, rows, weights, writer)) return;
    const Reader second(program, op.second >= 0 ? op.second : main_input(op));
    const auto finish = [&](const float *tile, int64_t first, int size, int column, int vectors) {
        int64_t stream = rows.stream_of(first), step = first - stream * rows.steps;
        Floats total = {}, squares = {};
        for (int i = 0; i < size; i++) {
            const Writer::Row to = writer.row(stream, step);
            const char *beside = second.row(stream, step);
            for (int v = 0; v < vectors; v++) {
                const int at = column + v * LANES, count = op.columns - at;
                Floats value = load(tile + (i * vectors + v) * LANES);
                if (op.second >= 0) value += second.read(beside, at, count);
                writer.write(to, at, count, value);
                if (op.statistics >= 0) total += value, squares += value * value; // what fills the last vector is zero
            }
            if (++step == rows.steps) step = 0, stream++;
        }
        if (op.statistics >= 0) {
            const int columns = op.columns - column < vectors * LANES ? op.columns - column : vectors * LANES;
            add_sums(program, op, total, squares, (int64_t)size * columns);
        }
    };
    multiply_windows<NARROW>(program, op, rows, weights, finish);
}

constexpr float EPSILON = 1e-5f; // of torch's norms

static void normalize_row(const Writer &writer, const Writer::Row &to, const Operation &op, const float *values, int width) {
    Floats total = {}, squares = {};
    for (int i = 0; i < width; i += LANES) total += load(values + i, width - i);
    const float mean = sum(total) / width;
    for (int i = 0; i < width; i += LANES) {
        Floats distance = load(values + i, width - i) - mean;
        if (width - i < LANES) {
            float part[LANES];
            store(part, distance);
            for (int lane = width - i; lane < LANES; lane++) part[lane] = 0;
            distance = load(part);
        }
        squares += distance * distance;
    }
    const float scale = 1.f / __builtin_sqrtf(sum(squares) / width + EPSILON);
    for (int i = 0; i < width; i += LANES) {
        const int count = width - i;
        Floats value = (load(values + i, count) - mean) * scale;
        if (op.gain) value = value * load(op.gain + i, count) + load(op.shift + i, count);
        writer.write(to, i, count, value);
    }
}

static void layer_norm(const Program &program, const Operation &op) {
    const int width = program.buffer(op.input).width;
    const Writer writer(program, op);
    for (int64_t stream = 0; stream < program.streams; stream++)
        for (int64_t row = 0; row < program.places[op.input].rows; row++)
            normalize_row(writer, writer.row(stream, row), op, (const float *)program.at(op.input, stream, row), width);
}

// Depthwise convolution with the rows before, then layer norm. The weights are [taps, width].
static void depthwise(const Program &program, const Operation &op) {
    const int width = program.buffer(op.input).width;
    const float *taps = (const float *)op.weights;
    const Writer writer(program, op);
    for (int64_t stream = 0; stream < program.streams; stream++)
        for (int64_t row = 0; row < program.places[op.input].rows; row++) {
            const float *first = (const float *)program.at(op.input, stream, row - op.length + 1);
            for (int i = 0; i < width; i += LANES) {
                const int count = width - i;
                Floats value = load(op.bias + i, count);
                for (int tap = 0; tap < op.length; tap++)
                    value += load(first + tap * width + i, count) * load(taps + tap * width + i, count);
                store(program.scratch + i, value, count);
            }
            normalize_row(writer, writer.row(stream, row), op, program.scratch, width);
        }
}

struct Normal {
    float mean, scale;
    Normal(const double *sums) {
        const double average = sums[0] / sums[2];
        mean = (float)average;
        scale = (float)(1. / __builtin_sqrt(sums[1] / sums[2] - average * average + EPSILON));
    }
};

template <bool BOTH> static void normalize_group(const Program &program, const Operation &op) {
    const int width = program.buffer(op.input).width;
    const Writer writer(program, op);
    const Reader first(program, op.input), second(program, BOTH ? op.second : op.input);
    for (int64_t stream = 0; stream < program.streams; stream++) {
        const Normal own(program.sums(op.statistics, stream));
        const Normal other(program.sums(BOTH ? op.second_statistics : op.statistics, stream));
        for (int64_t row = 0; row < program.places[op.input].rows; row++) {
            const Writer::Row to = writer.row(stream, row);
            const float *from = (const float *)first.row(stream, row), *beside = (const float *)second.row(stream, row);
            for (int i = 0; i < width; i += LANES) {
                const int count = width - i;
                Floats value = (load(from + i, count) - own.mean) * own.scale;
                value = value * load(op.gain + i, count) + load(op.shift + i, count);
                if constexpr (BOTH) {
                    Floats more = (load(beside + i, count) - other.mean) * other.scale;
                    value += more * load(op.second_gain + i, count) + load(op.second_shift + i, count);
                }
                writer.write(to, i, count, value);
            }
        }
    }
}

// Rows of log-magnitudes and phases, [bins] each for every channel, to real and imaginary parts, a row for each channel.
static void spectrum(const Program &program, const Operation &op) {
    const int bins = op.length;
    for (int64_t stream = 0; stream < program.streams; stream++)
        for (int64_t row = 0; row < program.places[op.input].rows; row++)
            for (int channel = 0; channel < op.up; channel++) {
                const float *from = (const float *)program.at(op.input, stream, row) + channel * 2 * bins;
                float *to = (float *)program.at(op.output, stream, row * op.up + channel);
                for (int i = 0; i < bins; i += LANES) {
                    const int count = bins - i;
                    Floats magnitude = expm1(smaller(load(from + i, count), all(6.f))) + 1.f, sine, cosine;
                    sine_cosine(load(from + bins + i, count), sine, cosine);
                    store(to + i, magnitude * cosine, count);
                    store(to + bins + i, magnitude * sine, count);
                }
            }
}

// Frames [rows of each channel in turn] to samples: the end of each lies over the beginning of the next one's hop.
static void overlap_add(const Program &program, const Operation &op) {
    const int channels = op.stride, hop = op.length, overlap = program.buffer(op.input).width - hop;
    const int64_t frames = program.places[op.input].rows / channels;
    for (int64_t stream = 0; stream < program.streams; stream++)
        for (int64_t frame = 0; frame < frames; frame++)
            for (int channel = 0; channel < channels; channel++) {
                const float *own = (const float *)program.at(op.input, stream, frame * channels + channel);
                const float *past = (const float *)program.at(op.input, stream, (frame - 1) * channels + channel) + hop;
                float *to = (float *)program.at(op.output, stream, frame * hop) + channel;
                for (int i = 0; i < hop; i++) to[i * channels] = own[i] + (i < overlap ? past[i] : 0.f);
            }
}
