#include "naive.h"

#include <math.h>
#include <stdlib.h>

#include "check.h"

/* Of a float32 computation over a few hundred keys and values of at most 2. */
#define TOLERANCE 1e-5

static int visible(const icecore_attention *p, int64_t batch, int64_t query, int64_t key) {
    const int64_t position = p->keys - p->queries + query;
    if (p->causal && key > position) return 0;
    if (p->ranges) {
        const int64_t *range = p->ranges + batch * p->range_batch_stride + query * p->range_row_stride;
        if (key < range[0] || key >= range[1]) return 0;
    }
    if (key < p->sinks) return 1;
    if (p->window_left >= 0 && position - key >= p->window_left) return 0;
    return p->window_right < 0 || key - position < p->window_right;
}

static double score(const icecore_attention *p, int64_t batch, int64_t head, int64_t query, int64_t key) {
    int64_t key_head = head / (p->query_heads / p->key_heads);
    int64_t q = element_index(&p->query, batch, head, query, 0), k = element_index(&p->key, batch, key_head, key, 0);
    double sum = 0.0;
    for (int64_t t = 0; t < p->dim; t++)
        sum += element_get(&p->query, p->dtype, q + t) * element_get(&p->key, p->dtype, k + t);
    sum *= p->scale;
    if (p->softcap > 0.0f) sum = p->softcap * tanh(sum / p->softcap);
    if (p->alibi_slopes) sum -= (double)p->alibi_slopes[head] * fabs((double)(p->keys - p->queries + query - key));
    int64_t mask = batch * p->mask_batch_stride + head * p->mask_head_stride + query * p->mask_row_stride +
                   key * p->mask_key_stride;
    if (p->mask_kind == ICECORE_MASK_BOOL) return ((const uint8_t *)p->mask)[mask] ? sum : -INFINITY;
    if (p->mask_kind == ICECORE_MASK_FLOAT32) {
        double bias = ((const float *)p->mask)[mask];
        return bias == -INFINITY ? bias : sum + bias;
    }
    return sum;
}

/* hidden[j] = 1 where the mask, causality or the window hide key j, whose score is then -inf. */
static void row_scores(const icecore_attention *p, int64_t batch, int64_t head, int64_t query, double *scores,
                       char *hidden) {
    for (int64_t j = 0; j < p->keys; j++) {
        scores[j] = visible(p, batch, query, j) ? score(p, batch, head, query, j) : -INFINITY;
        hidden[j] = !visible(p, batch, query, j) || (p->mask_kind != ICECORE_MASK_NONE && scores[j] == -INFINITY);
    }
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

static void keep_largest(const icecore_attention *p, int64_t keep, const double *scores, char *hidden) {
    double *visible = malloc((size_t)(p->keys + 1) * sizeof *visible);
    int64_t count = 0;
    for (int64_t j = 0; j < p->keys; j++)
        if (!hidden[j]) visible[count++] = scores[j];
    if (count > keep) {
        qsort(visible, (size_t)count, sizeof *visible, descending);
        for (int64_t j = 0; j < p->keys; j++) hidden[j] |= scores[j] < visible[keep - 1];
    }
    free(visible);
}

/* The mean over the keys that are not hidden, and the mean of the absolute values; returns the lse. */
static double softmax_mean(const icecore_attention *p, int64_t batch, int64_t head, const double *scores,
                           const char *hidden, double *out, double *absolute) {
    const double sink = p->sink_logits ? (double)p->sink_logits[head] : -INFINITY;
    double top = sink, sum = 0.0;
    int any = sink > -INFINITY;
    for (int64_t t = 0; t < p->value_dim; t++) out[t] = absolute[t] = 0.0;
    for (int64_t j = 0; j < p->keys; j++)
        if (!hidden[j]) {
            any = 1;
            if (!(scores[j] <= top)) top = scores[j];
        }
    if (!any) return -INFINITY;
    if (sink > -INFINITY) sum = exp(sink - top);
    for (int64_t j = 0; j < p->keys; j++) {
        if (hidden[j]) continue;
        double weight = exp(scores[j] - top);
        int64_t value = element_index(&p->value, batch, head / (p->query_heads / p->key_heads), j, 0);
        for (int64_t t = 0; t < p->value_dim; t++) {
            double term = weight * element_get(&p->value, p->dtype, value + t);
            out[t] += term;
            absolute[t] += fabs(term);
        }
        sum += weight;
    }
    for (int64_t t = 0; t < p->value_dim; t++) {
        out[t] /= sum;
        absolute[t] /= sum;
    }
    return top + log(sum);
}

/* The result is rounded to its dtype.  Where bfloat16 is multiplied natively, each weight is rounded to it as well. */
static double tolerance(icecore_dtype dtype, double out, double absolute) {
    if (dtype == ICECORE_BFLOAT16) return TOLERANCE + 0x1p-8 * (fabs(out) + absolute);
    return TOLERANCE + (dtype == ICECORE_FLOAT16 ? 0x1p-11 : 0x1p-24) * fabs(out);
}

static int close_to(double found, double wanted, double allowed) {
    if (isnan(wanted)) return isnan(found);
    return found == wanted || fabs(found - wanted) <= allowed;
}

void expect_attention(const problem *s, int64_t keep) {
    const icecore_attention *p = &s->p;
    double *scores = malloc((size_t)(p->keys + 1) * sizeof *scores), out[ICECORE_MAX_DIM], absolute[ICECORE_MAX_DIM];
    char *hidden = malloc((size_t)p->keys + 1);
    const float *lse = p->lse;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t h = 0; h < p->query_heads; h++)
            for (int64_t i = 0; i < p->queries; i++) {
                row_scores(p, b, h, i, scores, hidden);
                if (keep) keep_largest(p, keep, scores, hidden);
                double wanted = softmax_mean(p, b, h, scores, hidden, out, absolute);
                int64_t row = element_index(&p->out, b, h, i, 0);
                for (int64_t t = 0; t < p->value_dim; t++)
                    EXPECT(close_to(element_get(&p->out, p->dtype, row + t), out[t],
                                    tolerance(p->dtype, out[t], absolute[t])));
                if (lse) EXPECT(close_to((double)*lse++, wanted, TOLERANCE * (1.0 + fabs(wanted))));
            }
    EXPECT(problem_gaps_are_clear(s));
    free(scores);
    free(hidden);
}

double naive_lse(const icecore_attention *p, int64_t batch, int64_t head, int64_t query) {
    double *scores = malloc((size_t)(p->keys + 1) * sizeof *scores), out[ICECORE_MAX_DIM], absolute[ICECORE_MAX_DIM];
    char *hidden = malloc((size_t)p->keys + 1);
    row_scores(p, batch, head, query, scores, hidden);
    double lse = softmax_mean(p, batch, head, scores, hidden, out, absolute);
    free(scores);
    free(hidden);
    return lse;
}
