// Vectors of floats as wide as the instruction set has them, and the functions that networks need of them.
// Included once for each instruction set, inside its own namespace: see avx2.cpp.
typedef float Floats __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint16_t Shorts __attribute__((vector_size(LANES * 2), aligned(2)));
typedef uint16_t bfloat;

static inline Floats all(float x) { return x - Floats{}; }
static inline Floats bits(Ints x) { return (Floats)x; }
static inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

static inline Floats load(const float *p) { return *(const Floats *)p; }
static inline Floats load(const bfloat *p) { return bits(__builtin_convertvector(*(const Shorts *)p, Ints) << 16); }

static inline Shorts narrowed(Floats x) {
#if HAS_BFLOAT
    return (Shorts)_mm512_cvtneps_pbh((__m512)x);
#else
    Ints i = (Ints)x; // round to nearest, ties to even
    return __builtin_convertvector((i + 0x7fff + ((i >> 16) & 1)) >> 16, Shorts);
#endif
}

static inline void store(float *p, Floats x) { *(Floats *)p = x; }
static inline void store(bfloat *p, Floats x) { *(Shorts *)p = narrowed(x); }

// The first `count` values only, for rows that are not whole vectors.
template <class T> static inline Floats load(const T *p, int count) {
    if (count >= LANES) return load(p);
    T part[LANES] = {};
    memcpy(part, p, count * sizeof(T));
    return load(part);
}
template <class T> static inline void store(T *p, Floats x, int count) {
    if (count >= LANES) return store(p, x);
    T part[LANES];
    store(part, x);
    memcpy(p, part, count * sizeof(T));
}

static inline float sum(Floats x) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)x);
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
#endif
}

// x = n ln 2 + f: e^x - 1 = 2^n (e^f - 1) + (2^n - 1), which keeps the digits of small x. For x up to 88.
// SHORT is as exact as bfloats can show.
template <bool SHORT = false> static inline Floats expm1_below(Floats x) {
    x = larger(x, all(-87.f));
    Floats shifted = x * 1.44269504f + 12582912.f; // adding 1.5 * 2^23 rounds to an integer, which is then in the lowest bits
    Floats n = shifted - 12582912.f, p;
    Floats f = x - n * (SHORT ? 0.693147182f : 0.693145752f);
    if constexpr (SHORT) {
        p = f * 4.1666667e-2f + 1.6666667e-1f;
    } else {
        f = f - n * 1.42860677e-6f;
        p = f * 1.9841270e-4f + 1.3888889e-3f;
        p = p * f + 8.3333333e-3f;
        p = p * f + 4.1666667e-2f;
        p = p * f + 1.6666667e-1f;
    }
    p = p * f + 0.5f;
    p = p * (f * f) + f;
    Floats scale = bits(((Ints)shifted << 23) + 0x3f800000); // 2^n
    return scale * p + (scale - 1.f);
}

template <bool SHORT = false> static inline Floats expm1(Floats x) { return expm1_below<SHORT>(smaller(x, all(88.f))); }

// Of positive x, expm1_below is computed and thrown away, whatever it is.
template <bool SHORT> static inline Floats elu(Floats x) { return x > 0.f ? x : expm1_below<SHORT>(x); }
template <bool SHORT> static inline Floats sigmoid(Floats x) { return 1.f / (2.f + expm1<SHORT>(-x)); }
// The sigmoid of one times the tanh of another, with one division.
template <bool SHORT> static inline Floats sigmoid_tanh(Floats x, Floats y) {
    Floats e = expm1<SHORT>(larger(smaller(y, all(15.f)), all(-15.f)) * 2.f);
    return e / ((e + 2.f) * (2.f + expm1<SHORT>(-x)));
}

// x Phi(x). Source of erf: Abramowitz and Stegun, 7.1.26, as in torch's own kernels.
template <bool SHORT> static inline Floats gelu(Floats x) {
    Floats z = x * 0.707106781f;
    Floats a = larger(z, -z);
    Floats t = 1.f / (a * 0.3275911f + 1.f);
    Floats p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Floats tail = p * t * (expm1<SHORT>(-(a * a)) + 1.f); // 1 - erf(|z|)
    Floats cumulative = x > 0.f ? 1.f - 0.5f * tail : 0.5f * tail;
    return x * cumulative;
}

// Source of the polynomials: Cephes, sinf and cosf. The angle is reduced by pi / 2 in three parts.
static inline void sine_cosine(Floats x, Floats &sine, Floats &cosine) {
    Floats n = (x * 0.636619772f + 12582912.f) - 12582912.f;
    Floats r = x - n * 1.5703125f;
    r = r - n * 4.83751297e-4f;
    r = r - n * 7.5497899e-8f;
    Floats s = r * r;
    Floats p = ((s * -1.9515295891e-4f + 8.3321608736e-3f) * s - 1.6666654611e-1f) * s * r + r;
    Floats q = ((s * 2.443315711809948e-5f - 1.388731625493765e-3f) * s + 4.166664568298827e-2f) * s * s - 0.5f * s + 1.f;
    Ints quarter = __builtin_convertvector(n, Ints);
    Floats a = (quarter & 1) != 0 ? q : p, b = (quarter & 1) != 0 ? p : q;
    sine = (quarter & 2) != 0 ? -a : a;
    cosine = ((quarter + 1) & 2) != 0 ? -b : b;
}

template <bool SHORT> static inline Floats activated(Floats x, int activation) {
    return activation == ELU ? elu<SHORT>(x) : activation == GELU ? gelu<SHORT>(x) : x;
}
