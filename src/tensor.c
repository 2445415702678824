/* Tensors: element types, exact conversions, and reads through any strides from data that may lie unaligned. */
#include "file.h"

GMEM_API const char *gmem_type_name(gmem_type type) {
    static const char *const names[] = {
#define GMEM__TYPE_NAME(name, bytes, text) text,
        GMEM_TYPE_LIST(GMEM__TYPE_NAME)
#undef GMEM__TYPE_NAME
    };
    return (int)type >= 0 && type < GMEM_TYPE_COUNT ? names[type] : "unknown";
}

GMEM_API size_t gmem_type_bytes(gmem_type type) {
    static const unsigned char sizes[] = {
#define GMEM__TYPE_BYTES(name, bytes, text) bytes,
        GMEM_TYPE_LIST(GMEM__TYPE_BYTES)
#undef GMEM__TYPE_BYTES
    };
    return (int)type >= 0 && type < GMEM_TYPE_COUNT ? sizes[type] : 0;
}

GMEM_API int64_t gmem_tensor_count(const gmem_tensor *tensor) {
    int64_t count = 1;
    for (int i = 0; i < tensor->rank; i++)
        count *= tensor->shape[i];
    return count;
}

/* The stride outside of a dimension that is contiguous. Unsigned: shapes may come here before they are checked. */
static int64_t gmem__outer_stride(int64_t stride, int64_t size) {
    return (int64_t)((uint64_t)stride * (uint64_t)gmem__max(size, 1));
}

GMEM_API gmem_tensor gmem_tensor_make(const char *name, gmem_type type, int rank, const int64_t *shape,
                                      const void *data) {
    gmem_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.name = name;
    tensor.type = type;
    tensor.rank = rank;
    tensor.data = data;
    int64_t stride = 1;
    for (int i = rank <= GMEM_MAX_RANK ? rank - 1 : -1; i >= 0; i--) {
        tensor.shape[i] = shape[i];
        tensor.stride[i] = stride;
        stride = gmem__outer_stride(stride, shape[i]);
    }
    return tensor;
}

/* the half formats ------------------------------------------------------------------------------------------------ */

static uint32_t gmem__float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float gmem__bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* binary16: 1 sign, 5 exponent (bias 15), 10 fraction. */
GMEM__FN float gmem__f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 31u, fraction = half & 1023u;
    if (exponent == 31) return gmem__bits_float(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return gmem__bits_float(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * (1.0f / 16777216.0f); /* subnormal: fraction * 2^-24, exact in f32 */
    return gmem__bits_float(sign | gmem__float_bits(magnitude));
}

/* Drops the low `shift` bits (1 to 31), to nearest, ties to even. A carry into the exponent is right: it rounds up. */
static uint32_t gmem__round_bits(uint32_t bits, int shift) {
    uint32_t half = 1u << (shift - 1), odd = (bits >> shift) & 1u;
    return (bits + (half - 1) + odd) >> shift;
}

GMEM__FN uint16_t gmem__f32_to_f16(float value) {
    uint32_t bits = gmem__float_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t result;
    if (magnitude > 0x7f800000u) {
        result = 0x7e00u | (magnitude >> 13 & 0x3ffu); /* a quiet NaN with what fits of its payload */
    } else if (magnitude >= 0x477ff000u) {
        result = 0x7c00u; /* 65520 and more round to infinity */
    } else if (magnitude >= 0x38800000u) {
        result = gmem__round_bits(magnitude - (112u << 23), 13); /* normal: 2^-14 and more */
    } else if (magnitude < 0x33000000u) {
        result = 0; /* less than half of the smallest subnormal */
    } else {
        uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
        result = gmem__round_bits(fraction, 126 - (int)(magnitude >> 23)); /* to a multiple of 2^-24 */
    }
    return (uint16_t)(sign | result);
}

GMEM__FN uint16_t gmem__f32_to_bf16(float value) {
    uint32_t bits = gmem__float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)gmem__round_bits(bits, 16);
}

/* elements from little-endian bytes ------------------------------------------------------------------------------- */

static uint16_t gmem__load16(const unsigned char *from) { return (uint16_t)(from[0] | from[1] << 8); }

static uint32_t gmem__load32(const unsigned char *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static uint64_t gmem__load64(const unsigned char *from) {
    return (uint64_t)gmem__load32(from) | (uint64_t)gmem__load32(from + 4) << 32;
}

static double gmem__load_f64(const unsigned char *from) {
    uint64_t bits = gmem__load64(from);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Towards zero, as a C cast does where it is defined; what does not fit goes to the nearest end, NaN to 0. */
static int64_t gmem__double_to_i64(double value) {
    if (value != value) return 0;
    if (value >= 9223372036854775808.0) return INT64_MAX;
    if (value < -9223372036854775808.0) return INT64_MIN;
    return (int64_t)value;
}

/* X(type, what it holds, the element at `from` as a number of C) */
#define GMEM__LOADS(X)                                   \
    X(F32, REAL, gmem__bits_float(gmem__load32(from)))   \
    X(F16, REAL, gmem__f16_to_f32(gmem__load16(from)))   \
    X(BF16, REAL, gmem__bf16_to_f32(gmem__load16(from))) \
    X(F64, REAL, gmem__load_f64(from))                   \
    X(I8, INTEGER, (int8_t)*from)                        \
    X(U8, INTEGER, *from)                                \
    X(I16, INTEGER, (int16_t)gmem__load16(from))         \
    X(I32, INTEGER, (int32_t)gmem__load32(from))         \
    X(I64, INTEGER, (int64_t)gmem__load64(from))         \
    X(BOOL, INTEGER, *from != 0)
#define GMEM__REAL_TO_I64(value)    gmem__double_to_i64((double)(value))
#define GMEM__INTEGER_TO_I64(value) ((int64_t)(value))

/* Elements at from, from + step, ... in row-major order: what one inner loop can take. */
typedef struct gmem__stretch {
    const unsigned char *from;
    int64_t step, count; /* bytes, elements */
} gmem__stretch;

static void gmem__stretch_to_f32(gmem_type type, gmem__stretch stretch, void *to) {
    float *out = (float *)to;
    const unsigned char *from = stretch.from;
    switch (type) {
#define GMEM__LOAD_CASE(name, kind, value)                                \
    case GMEM_##name:                                                     \
        for (int64_t i = 0; i < stretch.count; i++, from += stretch.step) \
            out[i] = (float)(value);                                      \
        break;
        GMEM__LOADS(GMEM__LOAD_CASE)
#undef GMEM__LOAD_CASE
    case GMEM_TYPE_COUNT:
        break;
    }
}

static void gmem__stretch_to_i64(gmem_type type, gmem__stretch stretch, void *to) {
    int64_t *out = (int64_t *)to;
    const unsigned char *from = stretch.from;
    switch (type) {
#define GMEM__LOAD_CASE(name, kind, value)                                \
    case GMEM_##name:                                                     \
        for (int64_t i = 0; i < stretch.count; i++, from += stretch.step) \
            out[i] = GMEM__##kind##_TO_I64(value);                        \
        break;
        GMEM__LOADS(GMEM__LOAD_CASE)
#undef GMEM__LOAD_CASE
    case GMEM_TYPE_COUNT:
        break;
    }
}

static void gmem__stretch_copy(gmem_type type, gmem__stretch stretch, void *to) {
    unsigned char *out = (unsigned char *)to;
    int64_t bytes = (int64_t)gmem_type_bytes(type);
    if (stretch.step == bytes) {
        memcpy(out, stretch.from, (size_t)(stretch.count * bytes));
        return;
    }
    for (int64_t i = 0; i < stretch.count; i++)
        memcpy(out + i * bytes, stretch.from + i * stretch.step, (size_t)bytes);
}

/* walking strides ----------------------------------------------------------------------------------------------- */

/* How a tensor is walked: the innermost dimensions that one step reaches count as one. */
typedef struct gmem__walk {
    const gmem_tensor *tensor;
    int outer;           /* dimensions outside of the innermost stretch */
    int64_t step, count; /* elements */
} gmem__walk;

static gmem__walk gmem__walk_of(const gmem_tensor *tensor) {
    gmem__walk walk = {tensor, tensor->rank, 1, 1};
    while (walk.outer > 0) {
        int64_t size = tensor->shape[walk.outer - 1], stride = tensor->stride[walk.outer - 1];
        if (size != 1) {
            if (walk.count == 1)
                walk.step = stride;
            else if (stride != walk.step * walk.count)
                break;
            walk.count *= size;
        }
        walk.outer--;
    }
    return walk;
}

/* The stretch from element `first` on, at most `limit` elements long. */
static gmem__stretch gmem__stretch_at(const gmem__walk *walk, int64_t first, int64_t limit) {
    const gmem_tensor *tensor = walk->tensor;
    int64_t bytes = (int64_t)gmem_type_bytes(tensor->type), inner = first % walk->count, rest = first / walk->count;
    int64_t offset = inner * walk->step;
    for (int i = walk->outer - 1; i >= 0; i--) {
        offset += rest % tensor->shape[i] * tensor->stride[i];
        rest /= tensor->shape[i];
    }
    gmem__stretch stretch;
    stretch.from = (const unsigned char *)tensor->data + offset * bytes;
    stretch.step = walk->step * bytes;
    stretch.count = gmem__min(limit, walk->count - inner);
    return stretch;
}

/* Elements [first, first + count) into out, `width` bytes each there. */
static void gmem__read_stretches(const gmem_tensor *tensor, int64_t first, int64_t count, void *out, size_t width,
                                 void (*read)(gmem_type type, gmem__stretch stretch, void *to)) {
    if (count <= 0) return; /* an empty tensor's other dimensions mean nothing */
    gmem__walk walk = gmem__walk_of(tensor);
    for (int64_t done = 0; done < count;) {
        gmem__stretch stretch = gmem__stretch_at(&walk, first + done, count - done);
        read(tensor->type, stretch, (char *)out + (size_t)done * width);
        done += stretch.count;
    }
}

GMEM_API void gmem_tensor_read_f32(const gmem_tensor *tensor, int64_t first, int64_t count, float *out) {
    gmem__read_stretches(tensor, first, count, out, sizeof *out, gmem__stretch_to_f32);
}

GMEM_API void gmem_tensor_read_i64(const gmem_tensor *tensor, int64_t first, int64_t count, int64_t *out) {
    gmem__read_stretches(tensor, first, count, out, sizeof *out, gmem__stretch_to_i64);
}

GMEM_API void gmem_tensor_read(const gmem_tensor *tensor, int64_t first, int64_t count, void *out) {
    gmem__read_stretches(tensor, first, count, out, gmem_type_bytes(tensor->type), gmem__stretch_copy);
}

GMEM__FN int gmem__tensor_is_contiguous(const gmem_tensor *tensor) {
    int64_t expected = 1;
    for (int i = tensor->rank - 1; i >= 0; i--) {
        if (tensor->shape[i] != 1 && tensor->stride[i] != expected) return 0;
        expected = gmem__outer_stride(expected, tensor->shape[i]);
    }
    return 1;
}

GMEM_API void gmem_convert_f32(const float *from, int64_t count, gmem_type type, void *out) {
    if (type == GMEM_F32) {
        memcpy(out, from, (size_t)count * sizeof *from);
    } else if (type == GMEM_F64) {
        for (int64_t i = 0; i < count; i++)
            ((double *)out)[i] = (double)from[i];
    } else if (type == GMEM_F16) {
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)out)[i] = gmem__f32_to_f16(from[i]);
    } else if (type == GMEM_BF16) {
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)out)[i] = gmem__f32_to_bf16(from[i]);
    }
}

/* needed tensors -------------------------------------------------------------------------------------------------- */

static gmem_status gmem__fail_missing(const gmem_file *file, const char *name, gmem_error *error) {
    gmem__quoted quoted, culprit;
    const char *foreign = gmem__file_foreign_at(file, name);
    if (foreign)
        return gmem__fail_at(error, GMEM_E_FOREIGN, gmem_file_path(file), -1,
                             "%s: only the file's own code could build it (%s), and none is run",
                             gmem__quote(&quoted, name), gmem__quote(&culprit, foreign));
    return gmem__fail_at(error, GMEM_E_MISSING_TENSOR, gmem_file_path(file), -1, "%s: missing",
                         gmem__quote(&quoted, name));
}

static int gmem__shape_matches(const gmem_tensor *tensor, int rank, const int64_t *shape) {
    if (tensor->rank != rank) return 0;
    for (int i = 0; i < rank; i++) {
        if (shape[i] >= 0 && tensor->shape[i] != shape[i]) return 0;
    }
    return 1;
}

GMEM__FN const gmem_tensor *gmem__find_scale(const gmem_file *file, const char *name) {
    static const char suffix[] = ".scale";
    char scale[1024];
    size_t length = strlen(name);
    if (length > sizeof scale - sizeof suffix) return NULL;
    memcpy(scale, name, length);
    memcpy(scale + length, suffix, sizeof suffix);
    return gmem_file_find(file, scale);
}

/* int8 weights are numbers only together with their scales. */
static gmem_status gmem__check_type(const gmem_file *file, const gmem_tensor *tensor, gmem_error *error) {
    gmem__quoted quoted;
    gmem_type type = tensor->type;
    if (type == GMEM_F32 || type == GMEM_F16 || type == GMEM_BF16 || type == GMEM_F64) return GMEM_OK;
    if (type != GMEM_I8)
        return gmem__fail_at(error, GMEM_E_TYPE, gmem_file_path(file), -1, "%s: expected floating point, found %s",
                             gmem__quote(&quoted, tensor->name), gmem_type_name(type));
    if (!gmem__find_scale(file, tensor->name))
        return gmem__fail_at(error, GMEM_E_TYPE, gmem_file_path(file), -1,
                             "%s: found I8 without its scales in %s.scale", gmem__quote(&quoted, tensor->name),
                             quoted.text);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__need(const gmem_file *file, const char *name, int rank, const int64_t *shape,
                                const gmem_tensor **out, gmem_error *error) {
    gmem__quoted quoted, expected, found;
    const gmem_tensor *tensor = gmem_file_find(file, name);
    if (!tensor) return gmem__fail_missing(file, name, error);
    if (!gmem__shape_matches(tensor, rank, shape))
        return gmem__fail_at(error, GMEM_E_SHAPE, gmem_file_path(file), -1, "%s: expected %s, found %s",
                             gmem__quote(&quoted, name), gmem__shape_text(&expected, shape, rank),
                             gmem__shape_text(&found, tensor->shape, tensor->rank));
    GMEM__TRY(gmem__check_type(file, tensor, error));
    *out = tensor;
    return GMEM_OK;
}

#undef GMEM__LOADS
#undef GMEM__REAL_TO_I64
#undef GMEM__INTEGER_TO_I64
