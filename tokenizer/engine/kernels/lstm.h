// Recurrent layers: what the input adds to the gates is one product for many frames, what the past adds one for all streams.
//
// The weights of that one are packed compactly where a few rows share them, or where bytes shall be multiplied.

template <class Value> struct Lstm {
    static constexpr bool NARROW = sizeof(Value) == 2;
    static constexpr int STEPS_AT_ONCE = 128;
    const Program &program;
    const Operation &op;
    const int64_t streams, steps;
    const int width;
    const int pitch; // of a row of gates, in floats
    const bool bytes, compact;
    float *gates, *cell, *hidden;
    char *multiplied; // hidden state as bytes or bfloats, where it is not multiplied as floats
    const int64_t multiplied_row; // bytes
    Value *between[2]; // what goes from one layer to the next, [streams, steps, width]

    Lstm(const Program &p, const Operation &o)
        : program(p), op(o), streams(p.streams), steps(p.places[o.input].rows), width(p.buffer(o.input).width),
          pitch((4 * p.buffer(o.input).width + LANES - 1) / LANES * LANES),
          bytes(o.recurrent_bytes), compact(bytes || (o.layer_compact[0] && p.streams <= COMPACT_ROWS)),
          multiplied_row(p.buffer(o.input).width * (bytes ? 2 : (int)sizeof(Value))) {
        gates = (float *)p.arena->take(streams * (steps < STEPS_AT_ONCE ? steps : STEPS_AT_ONCE) * pitch * 4);
        cell = (float *)p.arena->take(streams * width * 4);
        hidden = (float *)p.arena->take(streams * width * 4);
        multiplied = NARROW || bytes ? p.arena->take(streams * multiplied_row) : (char *)hidden;
        for (int i = 0; i < 2; i++) between[i] = (Value *)p.arena->take(streams * steps * width * sizeof(Value));
    }

    // Where a layer's hidden and cell state stand in a stream's state.
    int64_t past(int64_t stream, int layer, int part) const {
        return (program.first_stream + stream) * program.call->state_size + op.state + (2 * layer + part) * width;
    }

    void run() {
        if (program.arena->failed) return;
        for (int layer = 0; layer < op.layers; layer++) {
            begin(layer);
            for (int64_t step = 0; step < steps; step += STEPS_AT_ONCE) run_block(layer, step, steps - step < STEPS_AT_ONCE ? steps - step : STEPS_AT_ONCE);
            end(layer);
        }
        const Value *last = between[(op.layers - 1) & 1];
        const Writer writer(program, op);
        const Reader input(program, op.input);
        for (int64_t stream = 0; stream < streams; stream++)
            for (int64_t step = 0; step < steps; step++) {
                const Writer::Row to = writer.row(stream, step);
                const char *from = input.row(stream, step);
                for (int i = 0; i < width; i += LANES)
                    writer.write(to, i, width - i, input.read(from, i, width - i) + load(last + (stream * steps + step) * width + i, width - i));
            }
    }

    void begin(int layer) {
        for (int64_t stream = 0; stream < streams; stream++) {
            float *own = hidden + stream * width, *own_cell = cell + stream * width;
            if (op.state < 0) {
                memset(own, 0, width * 4);
                memset(own_cell, 0, width * 4);
            } else {
                memcpy(own, program.call->state + past(stream, layer, 0), width * 4);
                memcpy(own_cell, program.call->state + past(stream, layer, 1), width * 4);
            }
            for (int i = 0; i < width; i += LANES) remember(stream, i, load(own + i, width - i));
        }
    }

    void end(int layer) {
        if (op.state < 0) return;
        for (int64_t stream = 0; stream < streams; stream++) {
            memcpy(program.call->next_state + past(stream, layer, 0), hidden + stream * width, width * 4);
            memcpy(program.call->next_state + past(stream, layer, 1), cell + stream * width, width * 4);
        }
    }

    // A vector of the hidden state, for the next frame.
    void remember(int64_t stream, int at, Floats value) {
        const int count = width - at;
        store(hidden + stream * width + at, value, count);
        char *row = multiplied + stream * multiplied_row;
        if (bytes) store_bytes((uint8_t *)row + at, (uint8_t *)row + width + at, value);
        else if (NARROW) store((Value *)row + at, value, count);
    }

    void run_block(int layer, int64_t first, int64_t count) {
        const int words = NARROW ? width / 2 : width;
        const int64_t row = width * sizeof(Value);
        Rows inputs;
        inputs.steps = count;
        if (layer == 0) inputs.add(program.at(op.input, 0, first), program.places[op.input].pitch, row, words);
        else inputs.add(between[(layer - 1) & 1] + first * width, steps * row, row, words);
        const Packed input_weights = {(const float *)op.layer_weights[2 * layer], 4 * width, words};
        multiply_inputs(layer, inputs, input_weights);
        for (int64_t step = 0; step < count; step++) {
            // To and fro: the weights that were read last are still in the cache, and are read first.
            multiply_past(layer, gates + step * pitch, count * pitch, step & 1);
            for (int64_t stream = 0; stream < streams; stream++)
                next(stream, gates + (stream * count + step) * pitch, between[layer & 1] + (stream * steps + first + step) * width);
        }
    }

    void multiply_inputs(int layer, const Rows &inputs, const Packed &weights) {
#if HAS_INTEGERS
        if (op.layer_scales[layer]) {
            const auto keep = [&](const float *tile, int64_t row, int size, int column, int vectors) {
                for (int i = 0; i < size; i++)
                    memcpy(gates + (row + i) * pitch + column, tile + i * vectors * LANES, vectors * LANES * sizeof(float));
            };
            return integer_matrix(program, IntegerShape(width), inputs, {weights, op.layer_scales[layer], op.layer_biases[layer]}, keep);
        }
#endif
        matrix<NARROW>(inputs, streams * inputs.steps, weights, Stored{op.layer_biases[layer], gates, pitch});
    }

    void multiply_past(int layer, float *to, int64_t to_pitch, bool backwards) {
        if (compact) {
            const Compact weights(op.layer_compact[layer], 4 * width, width, bytes);
            return add_past({multiplied, multiplied_row}, streams, weights, bytes, to, to_pitch, backwards);
        }
        const int words = NARROW ? width / 2 : width;
        const Packed weights = {(const float *)op.layer_weights[2 * layer + 1], 4 * width, words};
        Rows pasts;
        pasts.steps = 1;
        pasts.add(multiplied, multiplied_row, multiplied_row, words);
        matrix<NARROW>(pasts, streams, weights, Stored{nullptr, to, to_pitch}, backwards);
    }

    // Gates in torch's order: input, forget, cell, output.
    void next(int64_t stream, const float *gate, Value *output) {
        for (int i = 0; i < width; i += LANES) {
            const int count = width - i;
            float *kept = cell + stream * width + i;
            const Floats in = load(gate + i, count), forget = load(gate + width + i, count);
            const Floats fresh = load(gate + 2 * width + i, count), out = load(gate + 3 * width + i, count);
            Floats now = sigmoid<NARROW>(forget) * load(kept, count) + sigmoid_tanh<NARROW>(in, fresh);
            store(kept, now, count);
            now = sigmoid_tanh<NARROW>(out, now);
            remember(stream, i, now);
            store(output + i, now, count);
        }
    }
};
