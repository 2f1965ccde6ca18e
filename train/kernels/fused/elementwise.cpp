// Norms, GeGLU and the loss's exponentials on a CPU in bf16: one pass over memory each, fp32 inside.
// The compiler vectorises the loops. Threads are those of torch: `library.py` links torch's own OpenMP.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX512_VBMI2__
#include <immintrin.h>
#endif

namespace {

inline float wide(uint16_t half) {
    uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// To the nearest, ties to even; what is not a number stays so.
inline uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

// e^x within 2e-7 of itself, for |x| <= 87, by 2^n e^r with |r| <= ln 2 / 2 and r's Taylor series.
inline float exponential(float x) {
    float n = std::nearbyint(x * 1.44269504f);
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

constexpr float ROOT = 0.7978845608f;  // of 2 / pi
constexpr float CUBE = 0.044715f;
constexpr int64_t STEP = 128;  // of counts of columns: for each count, oneDNN makes code of its own

// tanh of GELU's approximation (Hendrycks and Gimpel 2016, arXiv:1606.08415).
inline float bend(float x) {
    float u = 2.0f * ROOT * (x + CUBE * x * x * x);
    u = u > 80.0f ? 80.0f : (u < -80.0f ? -80.0f : u);
    return 1.0f - 2.0f / (exponential(u) + 1.0f);
}

// The keys begin..end that a query sees, of a block's keys. `own`: its own key; `reach`: one past the last it sees, or 0.
struct Seen {
    int64_t begin, end;
    Seen(int64_t own, int64_t reach, int64_t window)
        : begin(window > 0 && own >= window ? own - window + 1 : 0), end(reach > 0 ? reach : own + 1) {}
};

// The softmax of scale * scores over begin..end, into `weights`.
inline void softmax(const uint16_t *scores, float *weights, Seen seen, float scale) {
    float top = wide(scores[seen.begin]), sum = 0.0f;
#pragma omp simd reduction(max : top)
    for (int64_t i = seen.begin; i < seen.end; ++i) top = wide(scores[i]) > top ? wide(scores[i]) : top;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = seen.begin; i < seen.end; ++i) {
        float x = (wide(scores[i]) - top) * scale;
        weights[i] = exponential(x < -87.0f ? -87.0f : x);
        sum += weights[i];
    }
    float share = 1.0f / sum;
#pragma omp simd
    for (int64_t i = seen.begin; i < seen.end; ++i) weights[i] *= share;
}

// The values of `in` that are `seen`, side by side; their numbers are `chosen`.
inline void side_by_side(const uint16_t *in, uint16_t *out, const uint16_t *seen, const int64_t *chosen, int64_t words,
                         int64_t count) {
    int64_t at = 0, done = 0;
#ifdef __AVX512_VBMI2__
    for (; at + 32 <= words && done + 32 <= count; at += 32) {
        __mmask32 mask = _mm512_test_epi16_mask(_mm512_loadu_si512(seen + at), _mm512_set1_epi16(-1));
        _mm512_storeu_si512(out + done, _mm512_maskz_compress_epi16(mask, _mm512_loadu_si512(in + at)));
        done += _mm_popcnt_u32(mask);
    }
#endif
    for (; done < count; ++done) out[done] = in[chosen[done]];
}

}  // namespace

extern "C" {

// y = x / rms(x) * (1 + weight) for each of `rows` rows of `width`; roots: 1 / rms(x) of each row.
void norm(const uint16_t *x, const uint16_t *weight, uint16_t *y, float *roots, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const uint16_t *in = x + row * width;
        uint16_t *out = y + row * width;
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; ++i) squares += wide(in[i]) * wide(in[i]);
        float root = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
        roots[row] = root;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) out[i] = narrow(wide(in[i]) * root * (1.0f + wide(weight[i])));
    }
}

// The gradient to x; the weight is frozen.
void norm_back(const uint16_t *gradient, const uint16_t *x, const uint16_t *weight, const float *roots, uint16_t *to_x,
               int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const uint16_t *upstream = gradient + row * width, *in = x + row * width;
        uint16_t *out = to_x + row * width;
        float root = roots[row], along = 0.0f;
#pragma omp simd reduction(+ : along)
        for (int64_t i = 0; i < width; ++i) along += wide(upstream[i]) * (1.0f + wide(weight[i])) * wide(in[i]);
        float back = along * root * root * root / static_cast<float>(width);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i)
            out[i] = narrow(wide(upstream[i]) * (1.0f + wide(weight[i])) * root - wide(in[i]) * back);
    }
}

// y = gelu(gate) * up
void geglu(const uint16_t *gate, const uint16_t *up, uint16_t *y, int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; ++i) {
        float x = wide(gate[i]);
        float active = wide(narrow(0.5f * x * (1.0f + bend(x))));  // rounded, as where it is a tensor
        y[i] = narrow(active * wide(up[i]));
    }
}

void geglu_back(const uint16_t *gradient, const uint16_t *gate, const uint16_t *up, uint16_t *to_gate, uint16_t *to_up,
                int64_t count) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; ++i) {
        float x = wide(gate[i]), upstream = wide(gradient[i]), t = bend(x);
        float slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * ROOT * (1.0f + 3.0f * CUBE * x * x);
        to_up[i] = narrow(upstream * (0.5f * x * (1.0f + t)));
        to_gate[i] = narrow(upstream * wide(up[i]) * slope);
    }
}

// Rotary embedding (Su et al. 2021, arXiv:2104.09864) of `heads` heads of `width` for each token, in halves as
// transformers pairs them; cosine, sine: [tokens, width]. `sign` -1 turns back, which is the gradient.
void rotate(const uint16_t *x, const uint16_t *cosine, const uint16_t *sine, uint16_t *y, int64_t tokens, int64_t heads,
            int64_t width, float sign) {
    int64_t half = width / 2;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < tokens * heads; ++row) {
        const uint16_t *in = x + row * width, *c = cosine + row / heads * width, *s = sine + row / heads * width;
        uint16_t *out = y + row * width;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            float first = wide(in[i]), second = wide(in[i + half]), turn = sign * wide(s[i]), stay = wide(c[i]);
            out[i] = narrow(first * stay - second * turn);
            out[i + half] = narrow(second * stay + first * turn);
        }
    }
}

// Of a block of logits, in place: e to each one's distance from its row's largest so far, `largest`, which is brought
// forward. `sums` of the exponentials before are scaled by `faded` and get these added.
void exponentials(uint16_t *logits, float *largest, float *sums, float *faded, int64_t rows, int64_t words) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        uint16_t *values = logits + row * words;
        float top = largest[row], sum = 0.0f;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < words; ++i) top = wide(values[i]) > top ? wide(values[i]) : top;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < words; ++i) {
            float x = wide(values[i]) - top;
            float e = exponential(x < -87.0f ? -87.0f : x);
            sum += e;
            values[i] = narrow(e);
        }
        faded[row] = std::exp(largest[row] - top);
        sums[row] = sums[row] * faded[row] + sum;
        largest[row] = top;
    }
}

// Of a block's exponentials [rows, words], the columns that count: their numbers into `chosen`, the columns side by side
// into `kept`, how many they are into `count`. A row may lose `most` of its sum so far in all; a word is left out if every
// row could lose `words` words of its size. What a row has lost, `lost`, is scaled by `faded` before. Where few would go,
// all stay: `count` is `words`, and nothing is written to `kept`.
void likely(const uint16_t *values, const float *sums, const float *faded, float *lost, int64_t *chosen, uint16_t *kept,
            int64_t *count, int64_t rows, int64_t words, float most) {
    std::vector<uint16_t> seen(words, 0);
#pragma omp parallel
    {
        std::vector<uint16_t> mine(words, 0);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            lost[row] *= faded[row];
            float room = std::max(most * sums[row] - lost[row], 0.0f) / static_cast<float>(words);
            uint32_t bits;
            std::memcpy(&bits, &room, 4);
            uint16_t bound = static_cast<uint16_t>(bits >> 16);  // of numbers that are not negative, bits have their order
            const uint16_t *in = values + row * words;
            uint16_t *marks = mine.data();
#pragma omp simd
            for (int64_t i = 0; i < words; ++i) marks[i] |= static_cast<uint16_t>(in[i] > bound);
        }
#pragma omp critical
        for (int64_t i = 0; i < words; ++i) seen[i] |= mine[i];
    }
    int64_t found = 0;
    for (int64_t i = 0; i < words; ++i) found += seen[i] ? 1 : 0;
    int64_t more = (found + STEP - 1) / STEP * STEP - found;
    *count = found + more > words - words / 8 ? words : found + more;
    if (*count == words) return;
    for (int64_t i = 0; more > 0; ++i)
        if (!seen[i]) seen[i] = 1, --more;
    found = 0;
    for (int64_t i = 0; i < words; ++i)
        if (seen[i]) chosen[found++] = i;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const uint16_t *in = values + row * words;
        uint16_t *out = kept + row * found;
        const uint16_t *marks = seen.data();
        float gone = 0.0f;
#pragma omp simd reduction(+ : gone)
        for (int64_t i = 0; i < words; ++i) gone += marks[i] ? 0.0f : wide(in[i]);
        lost[row] += gone;
        side_by_side(in, out, marks, chosen, words, found);
    }
}

// Scores [heads, queries, keys] of a block of queries become attention's weights, in place: 0 where a query sees no key.
// own: the key of the first query; window: 0: none; reach: of each query, or null; scale > 0
void attend(uint16_t *scores, const int64_t *reach, int64_t heads, int64_t queries, int64_t keys, int64_t own,
            int64_t window, float scale) {
#pragma omp parallel
    {
        std::vector<float> weights(keys);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < heads * queries; ++row) {
            int64_t query = row % queries;
            uint16_t *mine = scores + row * keys;
            Seen seen(own + query, reach ? reach[query] : 0, window);
            softmax(mine, weights.data(), seen, scale);
            std::fill(mine, mine + seen.begin, 0);
#pragma omp simd
            for (int64_t i = seen.begin; i < seen.end; ++i) mine[i] = narrow(weights[i]);
            std::fill(mine + seen.end, mine + keys, 0);
        }
    }
}

// As `attend`; and the weights' gradients in `away` become the scores': weight * (gradient - its row's shift) * scale.
void attend_back(uint16_t *scores, uint16_t *away, const float *shifts, const int64_t *reach, int64_t heads,
                 int64_t queries, int64_t keys, int64_t own, int64_t window, float scale) {
#pragma omp parallel
    {
        std::vector<float> weights(keys);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < heads * queries; ++row) {
            int64_t query = row % queries;
            uint16_t *mine = scores + row * keys, *back = away + row * keys;
            Seen seen(own + query, reach ? reach[query] : 0, window);
            softmax(mine, weights.data(), seen, scale);
            std::fill(mine, mine + seen.begin, 0);
            std::fill(back, back + seen.begin, 0);
#pragma omp simd
            for (int64_t i = seen.begin; i < seen.end; ++i) {
                mine[i] = narrow(weights[i]);
                back[i] = narrow(weights[i] * (wide(back[i]) - shifts[row]) * scale);
            }
            std::fill(mine + seen.end, mine + keys, 0);
            std::fill(back + seen.end, back + keys, 0);
        }
    }
}

}  // extern "C"
