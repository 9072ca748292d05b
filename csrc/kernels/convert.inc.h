/* Conversion between float32 and the other types. */

static void to_float32(icecore_dtype dtype, const void *source, float *target, int64_t count) {
    if (dtype == ICECORE_FLOAT32) {
        memcpy(target, source, (size_t)count * sizeof *target);
        return;
    }
    if (ice_is_quantized(dtype)) {
        dequantize_row(dtype, source, target, count);
        return;
    }
    const uint16_t *half = source;
    int64_t i = 0;
    if (dtype == ICECORE_BFLOAT16) {
        for (; i + VF_WIDTH <= count; i += VF_WIDTH) vf_store(target + i, vf_load_bf16(half + i));
        vf_store_n(target + i, vf_load_bf16_n(half + i, (int)(count - i)), (int)(count - i));
    } else {
        for (; i + VF_WIDTH <= count; i += VF_WIDTH) vf_store(target + i, vf_load_f16(half + i));
        vf_store_n(target + i, vf_load_f16_n(half + i, (int)(count - i)), (int)(count - i));
    }
}

static void from_float32(icecore_dtype dtype, const float *source, void *target, int64_t count) {
    if (dtype == ICECORE_FLOAT32) {
        memcpy(target, source, (size_t)count * sizeof *source);
        return;
    }
    if (ice_is_quantized(dtype)) {
        quantize_row(dtype, source, target, count);
        return;
    }
    uint16_t *half = target;
    int64_t i = 0;
    if (dtype == ICECORE_BFLOAT16) {
        for (; i + VF_WIDTH <= count; i += VF_WIDTH) vf_store_bf16(half + i, vf_load(source + i));
        vf_store_bf16_n(half + i, vf_load_n(source + i, (int)(count - i)), (int)(count - i));
    } else {
        for (; i + VF_WIDTH <= count; i += VF_WIDTH) vf_store_f16(half + i, vf_load(source + i));
        vf_store_f16_n(half + i, vf_load_n(source + i, (int)(count - i)), (int)(count - i));
    }
}

static int split(const float *source, uint16_t *high, uint16_t *low, int64_t count) {
    uint32_t over = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = ice_float_bits(source[i]), magnitude = bits & 0x7FFFFFFFu;
        const int is_nan = magnitude > 0x7F800000u;
        high[i] = (uint16_t)(is_nan ? bits >> 16 | 0x40u : (bits + 0x8000u) >> 16);
        low[i] = (uint16_t)(is_nan ? 0u : bits);
        over |= (magnitude >= 0x7F7F8000u) & (magnitude < 0x7F800000u);
    }
    return over != 0;
}

static void join(const uint16_t *high, const uint16_t *low, float *target, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        target[i] = ice_bits_float(((uint32_t)high[i] << 16) + (uint32_t)(int32_t)(int16_t)low[i]);
}

static void multiply(const float *x, const float *factor, int64_t count, float *product) {
    int64_t i = 0;
    for (; i + VF_WIDTH <= count; i += VF_WIDTH) vf_store(product + i, vf_mul(vf_load(x + i), vf_load(factor + i)));
    if (i < count)
        vf_store_n(product + i, vf_mul(vf_load_n(x + i, (int)(count - i)), vf_load_n(factor + i, (int)(count - i))),
                   (int)(count - i));
}
