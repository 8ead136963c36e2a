// Recurrent layers: what the input adds to the gates is one product for many frames, what the past adds one for all streams.

template <class Value> struct Lstm {
    static constexpr bool NARROW = sizeof(Value) == 2;
    static constexpr int STEPS_AT_ONCE = 128;
    const Program &program;
    const Operation &op;
    const int64_t streams, steps;
    const int width;
    const int pitch; // of a row of gates, in floats
    float *gates, *cell;
    Value *hidden, *between[2]; // what goes from one layer to the next, [streams, steps, width]

    Lstm(const Program &p, const Operation &o)
        : program(p), op(o), streams(p.streams), steps(p.places[o.input].rows), width(p.buffer(o.input).width),
          pitch((4 * p.buffer(o.input).width + LANES - 1) / LANES * LANES) {
        gates = (float *)p.arena->take(streams * (steps < STEPS_AT_ONCE ? steps : STEPS_AT_ONCE) * pitch * 4);
        cell = (float *)p.arena->take(streams * width * 4);
        hidden = (Value *)p.arena->take(streams * width * sizeof(Value));
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
        for (int64_t stream = 0; stream < streams; stream++)
            for (int i = 0; i < width; i++) {
                const bool fresh = op.state < 0;
                store(hidden + stream * width + i, all(fresh ? 0 : program.call->state[past(stream, layer, 0) + i]), 1);
                cell[stream * width + i] = fresh ? 0 : program.call->state[past(stream, layer, 1) + i];
            }
    }

    void end(int layer) {
        if (op.state < 0) return;
        for (int64_t stream = 0; stream < streams; stream++)
            for (int i = 0; i < width; i++) {
                program.call->next_state[past(stream, layer, 0) + i] = load(hidden + stream * width + i, 1)[0];
                program.call->next_state[past(stream, layer, 1) + i] = cell[stream * width + i];
            }
    }

    void run_block(int layer, int64_t first, int64_t count) {
        const int words = NARROW ? width / 2 : width;
        const int64_t row = width * sizeof(Value);
        Rows inputs, pasts;
        inputs.steps = count;
        if (layer == 0) inputs.add(program.at(op.input, 0, first), program.places[op.input].pitch, row, words);
        else inputs.add(between[(layer - 1) & 1] + first * width, steps * row, row, words);
        const Packed input_weights = {(const float *)op.layer_weights[2 * layer], 4 * width, words};
        const Packed past_weights = {(const float *)op.layer_weights[2 * layer + 1], 4 * width, words};
        matrix<NARROW>(inputs, streams * count, input_weights, Stored{op.layer_biases[layer], gates, pitch});
        pasts.steps = 1;
        pasts.add(hidden, row, row, words);
        for (int64_t step = 0; step < count; step++) {
            // To and fro: the weights that were read last are still in the cache, and are read first.
            matrix<NARROW>(pasts, streams, past_weights, Stored{nullptr, gates + step * pitch, count * pitch}, step & 1);
            for (int64_t stream = 0; stream < streams; stream++)
                next(stream, gates + (stream * count + step) * pitch, between[layer & 1] + (stream * steps + first + step) * width);
        }
    }

    // Gates in torch's order: input, forget, cell, output.
    void next(int64_t stream, const float *gate, Value *output) {
        for (int i = 0; i < width; i += LANES) {
            const int count = width - i;
            float *kept = cell + stream * width + i;
            Floats in = sigmoid(load(gate + i, count)), forget = sigmoid(load(gate + width + i, count));
            Floats fresh = tanh(load(gate + 2 * width + i, count)), out = sigmoid(load(gate + 3 * width + i, count));
            Floats now = forget * load(kept, count) + in * fresh;
            store(kept, now, count);
            now = out * tanh(now);
            store(hidden + stream * width + i, now, count);
            store(output + i, now, count);
        }
    }
};
