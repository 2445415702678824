/* What a model takes from its file: matrices and f32 vectors stay where they lie, so that opening touches none of them;
 * what has another layout or type is copied to f32. */
#include "internal.h"

GMEM__FN void *gmem__store_alloc(gmem__store *store, int64_t count, size_t bytes) {
    return gmem__blocks_take(store->context, &store->blocks, count, bytes, 64);
}

GMEM__FN void gmem__store_free(gmem__store *store) {
    if (store->uploaded) gmem__device_memory_free(store->context, store->uploaded);
    store->uploaded = NULL;
    gmem__blocks_free(store->context, &store->blocks);
}

GMEM__FN gmem_status gmem__store_place(gmem__store *store, const float **values, int64_t count, gmem_error *error) {
    return store->device ? gmem__device_place_vector(store, values, count, error) : GMEM_OK;
}

GMEM__FN gmem_status gmem__store_upload(gmem__store *store, gmem_error *error) {
    return store->device ? gmem__device_upload(store, error) : GMEM_OK;
}

static gmem_status gmem__store_no_memory(const gmem__store *store, const char *name, gmem_error *error) {
    gmem__quoted quoted;
    return gmem__fail_at(error, GMEM_E_MEMORY, gmem_file_path(store->file), -1, "%s: no memory for the weights",
                         gmem__quote(&quoted, name));
}

static void gmem__store_count(gmem__store *store, const gmem_tensor *tensor, int parameters) {
    int64_t count = gmem_tensor_count(tensor);
    if (parameters) store->parameters += count;
    store->bytes += count * (int64_t)gmem_type_bytes(tensor->type);
}

static int gmem__is_f32_array(const gmem_tensor *tensor) {
    return tensor->type == GMEM_F32 && gmem__tensor_is_contiguous(tensor) &&
           (uintptr_t)tensor->data % sizeof(float) == 0;
}

/* The whole tensor in f32, its rows multiplied by `scale` (rows) where that is not NULL: a copy, unless the file holds
 * just that. */
static gmem_status gmem__store_f32(gmem__store *store, const gmem_tensor *tensor, int64_t rows, const float *scale,
                                   const float **out, gmem_error *error) {
    int64_t count = gmem_tensor_count(tensor);
    if (!scale && gmem__is_f32_array(tensor)) {
        *out = (const float *)tensor->data;
        return GMEM_OK;
    }
    float *copy = (float *)gmem__store_alloc(store, count, sizeof *copy);
    if (!copy) return gmem__store_no_memory(store, tensor->name, error);
    gmem_tensor_read_f32(tensor, 0, count, copy);
    for (int64_t i = 0; scale && i < count; i++)
        copy[i] *= scale[i / (count / rows)];
    *out = copy;
    return GMEM_OK;
}

/* The scales (rows) of an I8 tensor, NULL for other types. */
static gmem_status gmem__store_scale(gmem__store *store, const gmem_tensor *tensor, int64_t rows, const float **out,
                                     gmem_error *error) {
    gmem__quoted quoted;
    *out = NULL;
    if (tensor->type != GMEM_I8) return GMEM_OK;
    const gmem_tensor *scale = gmem__find_scale(store->file, tensor->name); /* gmem__need has seen it */
    GMEM__TRY(gmem__need(store->file, scale->name, 1, &rows, &scale, error));
    if (scale->type == GMEM_I8)
        return gmem__fail_at(error, GMEM_E_TYPE, gmem_file_path(store->file), -1,
                             "%s: expected floating point, found I8", gmem__quote(&quoted, scale->name));
    GMEM__TRY(gmem__store_f32(store, scale, rows, NULL, out, error));
    gmem__store_count(store, scale, 0);
    return GMEM_OK;
}

/* Whether a row's elements, all dimensions but the first, lie side by side. */
static int gmem__has_contiguous_rows(const gmem_tensor *tensor) {
    gmem_tensor row = *tensor;
    if (row.shape[0] > 1) row.shape[0] = 1;
    return gmem__tensor_is_contiguous(&row);
}

/* `tensor`, whose shape has been checked, as a matrix (rows, cols). */
static gmem_status gmem__store_rows(gmem__store *store, const gmem_tensor *tensor, int64_t rows, int64_t cols,
                                    gmem__weight *out, gmem_error *error) {
    gmem__weight weight;
    memset(&weight, 0, sizeof weight);
    weight.rows = rows;
    weight.cols = cols;
    GMEM__TRY(gmem__store_scale(store, tensor, rows, &weight.scale, error));
    if (tensor->type != GMEM_F64 && gmem__has_contiguous_rows(tensor)) {
        weight.type = tensor->type;
        weight.data = tensor->data;
        weight.row_stride = rows == 1 ? cols : tensor->stride[0];
    } else {
        const float *copy = NULL;
        GMEM__TRY(gmem__store_f32(store, tensor, rows, weight.scale, &copy, error));
        weight.type = GMEM_F32;
        weight.scale = NULL;
        weight.data = copy;
        weight.row_stride = cols;
    }
    gmem__store_count(store, tensor, 1);
    *out = weight;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__store_table(gmem__store *store, const char *name, int64_t rows, int64_t cols,
                                       gmem__weight *out, gmem_error *error) {
    int64_t shape[2];
    const gmem_tensor *tensor;
    shape[0] = rows;
    shape[1] = cols;
    GMEM__TRY(gmem__need(store->file, name, 2, shape, &tensor, error));
    return gmem__store_rows(store, tensor, rows, cols, out, error);
}

GMEM__FN gmem_status gmem__store_matrix(gmem__store *store, const char *name, int64_t rows, int64_t cols,
                                        gmem__weight *out, gmem_error *error) {
    GMEM__TRY(gmem__store_table(store, name, rows, cols, out, error));
    return store->device ? gmem__device_place_weight(store, out, error) : GMEM_OK;
}

GMEM__FN gmem_status gmem__store_conv(gmem__store *store, const char *name, int64_t out_channels, int64_t in_channels,
                                      int64_t kernel, gmem__weight *out, gmem_error *error) {
    int64_t shape[4];
    const gmem_tensor *tensor;
    shape[0] = out_channels;
    shape[1] = in_channels;
    shape[2] = shape[3] = kernel;
    GMEM__TRY(gmem__need(store->file, name, 4, shape, &tensor, error));
    GMEM__TRY(gmem__store_rows(store, tensor, out_channels, in_channels * kernel * kernel, out, error));
    return store->device ? gmem__device_place_weight(store, out, error) : GMEM_OK;
}

GMEM__FN gmem_status gmem__store_vector(gmem__store *store, const char *name, int64_t count, const float **out,
                                        gmem_error *error) {
    const gmem_tensor *tensor;
    const float *scale;
    GMEM__TRY(gmem__need(store->file, name, 1, &count, &tensor, error));
    GMEM__TRY(gmem__store_scale(store, tensor, count, &scale, error));
    GMEM__TRY(gmem__store_f32(store, tensor, count, scale, out, error));
    gmem__store_count(store, tensor, 1);
    return gmem__store_place(store, out, count, error);
}

#define GMEM__PACKED_PIECE (64 << 20)

/* Memory for one weight, of a large piece: what of it is never asked for is never touched, and all of it can lie in
 * huge pages, of which each weight alone would leave one half empty. */
static void *gmem__store_take_packed(gmem__store *store, int64_t bytes) {
    const int64_t size = gmem__round_up(bytes, 64);
    if (store->packed_left < size) {
        const int64_t piece = gmem__max(size, gmem__min(GMEM__PACKED_PIECE, store->packed_bytes));
        store->packed = (char *)gmem__blocks_take_raw(store->context, &store->blocks, piece);
        store->packed_left = store->packed ? piece : 0;
        if (!store->packed) return NULL;
        store->packed_bytes += piece;
    }
    void *memory = store->packed;
    store->packed += size;
    store->packed_left -= size;
    return memory;
}

GMEM__FN gmem_status gmem__store_narrow(gmem__store *store, gmem__weight *weight, gmem_compute compute, int swiglu,
                                        gmem_error *error) {
    if (store->device) return gmem__device_narrow(store, weight, compute, error);
    weight->compute = compute == GMEM_COMPUTE_F16 ? GMEM_COMPUTE_F32 : compute;
    if (weight->compute == GMEM_COMPUTE_F32) return GMEM_OK;
    const int64_t bytes = gmem__cpu_packed_bytes(store->context, weight, swiglu, &weight->compute);
    if (bytes == 0) return GMEM_OK;
    void *memory = gmem__store_take_packed(store, bytes);
    weight->packed = (gmem__packed *)gmem__store_alloc(store, 1, sizeof *weight->packed);
    if (!memory || !weight->packed)
        return gmem__fail_at(error, GMEM_E_MEMORY, store->file ? gmem_file_path(store->file) : NULL, -1,
                             "no memory for the weights in the kernel's order: %lld bytes", (long long)bytes);
    gmem__cpu_packed_place(store->context, weight, swiglu, memory, weight->packed);
    weight->packed->file = store->file;
    return GMEM_OK;
}

#undef GMEM__PACKED_PIECE
