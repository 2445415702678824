/* A matrix product on the caller's memory: one linear layer, by the kernels that a network's layers run on. */
#include "internal.h"

struct gmem_linear {
    gmem__store store; /* of the weight's copy in the kernel's order, without a file */
    gmem__weight weight;
    gmem__engine engine;
    int64_t scratch_bytes;
    gmem__arena memory; /* of a device, for x and y of so many columns */
    float *x, *y;
    int64_t columns;
};

static gmem_status gmem__linear_check(const gmem_tensor *weight, const float *scale, gmem_error *error) {
    const gmem_type type = weight->type;
    if (type != GMEM_F32 && type != GMEM_F16 && type != GMEM_BF16 && type != GMEM_I8)
        return gmem__fail(error, GMEM_E_TYPE, "a weight of %s, expected F32, F16, BF16 or I8", gmem_type_name(type));
    if (weight->rank != 2 || weight->shape[0] < 1 || weight->shape[1] < 1 || weight->stride[1] != 1 ||
        weight->stride[0] < weight->shape[1])
        return gmem__fail(error, GMEM_E_SHAPE, "a weight must be (rows, depth), each row contiguous");
    if ((type == GMEM_I8) != (scale != NULL))
        return gmem__fail(error, GMEM_E_ARGUMENT, "I8 weights have a scale for each row, others have none");
    return GMEM_OK;
}

static gmem_status gmem__linear_fill(gmem_linear *linear, const gmem_context *context, const gmem_tensor *weight,
                                     const float *scale, gmem_error *error) {
    linear->weight.data = weight->data;
    linear->weight.scale = scale;
    linear->weight.type = weight->type;
    linear->weight.rows = weight->shape[0];
    linear->weight.cols = weight->shape[1];
    linear->weight.row_stride = weight->stride[0];
    linear->store.device = context->device;
    if (context->device) GMEM__TRY(gmem__device_place_weight(&linear->store, &linear->weight, error));
    GMEM__TRY(gmem__store_narrow(&linear->store, &linear->weight, context->compute, 0, error));
    GMEM__TRY(gmem__store_upload(&linear->store, error));
    GMEM__TRY(gmem__engine_open(&linear->store, &linear->engine, error));
    linear->scratch_bytes = linear->engine.ops->scratch_bytes(linear->engine.threads);
    linear->engine.scratch = gmem__alloc_raw(context, linear->scratch_bytes, 1);
    if (!linear->engine.scratch)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for a product: %lld bytes",
                          (long long)linear->scratch_bytes);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_linear_create(gmem_context *context, const gmem_tensor *weight, const float *scale,
                                        gmem_linear **out, gmem_error *error) {
    if (!context || !weight || !weight->data || !out)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a product needs a context and a weight");
    GMEM__TRY(gmem__linear_check(weight, scale, error));
    gmem_linear *linear = (gmem_linear *)gmem__alloc(context, 1, sizeof *linear);
    if (!linear) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a product");
    linear->store.context = context;
    gmem_status status = gmem__linear_fill(linear, context, weight, scale, error);
    if (status != GMEM_OK) {
        gmem_linear_destroy(linear);
        return status;
    }
    *out = linear;
    return GMEM_OK;
}

GMEM_API void gmem_linear_destroy(gmem_linear *linear) {
    if (!linear) return;
    const gmem_context *context = linear->store.context;
    if (linear->engine.ops) linear->engine.ops->release(&linear->engine, context, &linear->memory);
    gmem__free(context, linear->engine.scratch, linear->scratch_bytes, 1);
    gmem__engine_close(&linear->engine);
    gmem__store_free(&linear->store);
    gmem__free(context, linear, 1, sizeof *linear);
}

static void gmem__linear_take(gmem_linear *linear) {
    linear->x = GMEM__TAKE_F32(&linear->memory, linear->weight.cols * linear->columns);
    linear->y = GMEM__TAKE_F32(&linear->memory, linear->weight.rows * linear->columns);
}

/* A device's x and y, kept as long as the number of columns is the same. */
static gmem_status gmem__linear_reserve(gmem_linear *linear, int64_t columns, gmem_error *error) {
    if (linear->columns == columns) return GMEM_OK;
    linear->engine.ops->release(&linear->engine, linear->store.context, &linear->memory);
    memset(&linear->memory, 0, sizeof linear->memory);
    linear->columns = columns;
    gmem__linear_take(linear);
    GMEM__TRY(gmem__engine_reserve(&linear->engine, linear->store.context, &linear->memory, "a product", error));
    gmem__linear_take(linear);
    return GMEM_OK;
}

static gmem__linear gmem__linear_op(const gmem_linear *linear, int64_t columns, const float *x, float *y) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &linear->weight;
    op.x = x;
    op.y = y;
    op.x_stride = op.y_stride = op.columns = columns;
    op.activation = GMEM__ACT_NONE;
    return op;
}

GMEM_API gmem_status gmem_linear_run(gmem_linear *linear, int64_t columns, const float *x, float *y,
                                     gmem_error *error) {
    int notes;
    if (!linear || !x || !y || columns < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a product needs a weight, columns and room for the result");
    const gmem__ops *ops = linear->engine.ops;
    if (!linear->engine.stream) {
        const gmem__linear op = gmem__linear_op(linear, columns, x, y);
        ops->linear(&linear->engine, &op);
        return GMEM_OK;
    }
    GMEM__TRY(gmem__linear_reserve(linear, columns, error));
    const gmem__linear op = gmem__linear_op(linear, columns, linear->x, linear->y);
    ops->upload(&linear->engine, linear->x, x, linear->weight.cols * columns);
    ops->linear(&linear->engine, &op);
    GMEM__TRY(ops->settle(&linear->engine, &notes, error));
    ops->download(&linear->engine, y, linear->y, linear->weight.rows * columns);
    return ops->settle(&linear->engine, NULL, error);
}
