/* Memory of a device: its buffers and their count, the addresses that stand for them, and the way of weights from the
 * file's mapping to it: wrapped where device and host share memory, copied, converted, or left to be streamed. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#include <float.h>
#include <math.h>

/* buffers --------------------------------------------------------------------------------------------------------- */

/* Adds and returns what was there before. */
static int64_t gmem__count_up(int64_t *counter, int64_t by) {
#if defined(__GNUC__) || defined(__clang__)
    return __atomic_fetch_add(counter, by, __ATOMIC_ACQ_REL);
#else /* networks of one context may then not be opened by two threads at once */
    const int64_t before = *counter;
    *counter += by;
    return before;
#endif
}

/* Replaces `old`, and nothing else; returns whether it was there. */
static int gmem__replace(int64_t *value, int64_t old, int64_t by) {
#if defined(__GNUC__) || defined(__clang__)
    return GMEM__ATOMIC_CLAIM(value, &old, by);
#else
    if (*value != old) return 0;
    *value = by;
    return 1;
#endif
}

GMEM__FN int64_t gmem__device_left(struct gmem__device *device) {
    return gmem__max(0, device->found.limits.memory - gmem__count_up(&device->used, 0));
}

static gmem_status gmem__device_buffer_create(struct gmem__device *device, int64_t bytes, const void *host,
                                              gmem__cl_mem *out, gmem_error *error) {
    int32_t status = GMEM__CL_SUCCESS;
    const gmem__cl_bits flags =
        host ? GMEM__CL_MEM_READ_ONLY | GMEM__CL_MEM_USE_HOST_PTR : (gmem__cl_bits)GMEM__CL_MEM_READ_WRITE;
    void *pointer = (void *)(uintptr_t)host; /* OpenCL's prototype has no const */
    gmem__cl_mem memory = device->library.api.clCreateBuffer(device->cl, flags, (size_t)bytes, pointer, &status);
    if (status != GMEM__CL_SUCCESS) return gmem__cl_fail(error, "clCreateBuffer", status);
    *out = memory;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__device_buffer(struct gmem__device *device, int64_t bytes, const void *host,
                                         gmem__cl_mem *out, gmem_error *error) {
    const gmem__cl_limits *limits = &device->found.limits;
    if (bytes > limits->largest)
        return gmem__fail(error, GMEM_E_MEMORY, "%s: a buffer of %lld bytes is wanted, its largest has %lld",
                          limits->name, (long long)bytes, (long long)limits->largest);
    const int64_t used = gmem__count_up(&device->used, bytes);
    gmem_status status = GMEM_OK;
    if (bytes > limits->memory - used)
        status = gmem__fail(error, GMEM_E_MEMORY, "%s: %lld bytes are wanted, %lld of %lld are in use", limits->name,
                            (long long)bytes, (long long)used, (long long)limits->memory);
    else
        status = gmem__device_buffer_create(device, bytes, host, out, error);
    if (status != GMEM_OK) (void)gmem__count_up(&device->used, -bytes);
    return status;
}

GMEM__FN void gmem__device_buffer_release(struct gmem__device *device, gmem__cl_mem memory, int64_t bytes) {
    if (!memory) return;
    (void)device->library.api.clReleaseMemObject(memory);
    (void)gmem__count_up(&device->used, -bytes);
}

/* addresses ------------------------------------------------------------------------------------------------------- */

/* Where pointers have 64 bits, addresses lie where no host has memory. */
#define GMEM__FIRST_ADDRESS (sizeof(void *) >= 8 ? (uint64_t)1 << 60 : (uint64_t)1 << 16)
#define GMEM__LAST_ADDRESS  (sizeof(void *) >= 8 ? (uint64_t)1 << 62 : (uint64_t)0xfff00000u)
#define GMEM__ADDRESS_ALIGN 256 /* also the least gap: the end of one buffer is not the start of the next */

GMEM__FN uint64_t gmem__device_addresses(struct gmem__device *device, int64_t bytes) {
    const uint64_t room = GMEM__LAST_ADDRESS - GMEM__FIRST_ADDRESS;
    if (bytes < 0 || (uint64_t)bytes > room / 2) return 0;
    const int64_t span = gmem__round_up(bytes, GMEM__ADDRESS_ALIGN) + GMEM__ADDRESS_ALIGN;
    const uint64_t first = (uint64_t)gmem__count_up(&device->next_address, span);
    return first <= room - (uint64_t)span ? GMEM__FIRST_ADDRESS + first : 0;
}

static const void *gmem__address_pointer(uint64_t address) { return (const void *)(uintptr_t)address; }
static uint64_t gmem__pointer_address(const void *pointer) { return (uint64_t)(uintptr_t)pointer; }

GMEM__FN int gmem__device_memory_add(const gmem_context *context, gmem__device_memory *memory,
                                     const gmem__cl_buffer *buffer) {
    if (memory->count == memory->capacity) {
        const int64_t capacity = gmem__max(16, 2 * memory->capacity);
        gmem__cl_buffer *buffers = (gmem__cl_buffer *)gmem__alloc_raw(context, capacity, sizeof *buffers);
        if (!buffers) return 0;
        if (memory->count) memcpy(buffers, memory->buffers, (size_t)memory->count * sizeof *buffers);
        gmem__free(context, memory->buffers, memory->capacity, sizeof *buffers);
        memory->buffers = buffers;
        memory->capacity = capacity;
    }
    memory->buffers[memory->count++] = *buffer;
    return 1;
}

/* The first buffer that ends after the address, or the count. */
static int64_t gmem__device_memory_search(const gmem__device_memory *memory, uint64_t address) {
    int64_t low = 0, high = memory->count;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (memory->buffers[middle].address + (uint64_t)memory->buffers[middle].bytes > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

GMEM__FN gmem__cl_buffer *gmem__device_memory_find(const gmem__device_memory *memory, uint64_t address) {
    const int64_t i = gmem__device_memory_search(memory, address);
    return i < memory->count && memory->buffers[i].address <= address ? &memory->buffers[i] : NULL;
}

GMEM__FN void gmem__device_memory_drop(gmem__device_memory *memory, uint64_t address, int64_t bytes) {
    const int64_t first = gmem__device_memory_search(memory, address);
    int64_t end = first;
    for (; end < memory->count && memory->buffers[end].address < address + (uint64_t)bytes; end++)
        gmem__device_buffer_release(memory->device, memory->buffers[end].memory, memory->buffers[end].bytes);
    if (end == first) return;
    memmove(memory->buffers + first, memory->buffers + end, (size_t)(memory->count - end) * sizeof *memory->buffers);
    memory->count -= end - first;
}

GMEM__FN void gmem__device_memory_clear(const gmem_context *context, gmem__device_memory *memory) {
    for (int64_t i = 0; i < memory->count; i++)
        gmem__device_buffer_release(memory->device, memory->buffers[i].memory, memory->buffers[i].bytes);
    gmem__free(context, memory->buffers, memory->capacity, sizeof *memory->buffers);
    memory->buffers = NULL;
    memory->count = memory->capacity = 0;
}

/* The device's models, which one at a time goes through: seldom, and without waiting for the device. */
static void gmem__device_models_lock(struct gmem__device *device) {
    while (!gmem__replace(&device->giving, 0, 1))
        continue;
}

static void gmem__device_models_unlock(struct gmem__device *device) { GMEM__ATOMIC_STORE(&device->giving, 0); }

static void gmem__device_models_add(gmem__device_memory *memory) {
    struct gmem__device *device = memory->device;
    gmem__device_models_lock(device);
    memory->next = device->memories;
    device->memories = memory;
    gmem__device_models_unlock(device);
}

static void gmem__device_models_remove(const gmem__device_memory *memory) {
    struct gmem__device *device = memory->device;
    gmem__device_models_lock(device);
    gmem__device_memory **at = &device->memories;
    while (*at && *at != memory)
        at = &(*at)->next;
    if (*at) *at = memory->next;
    gmem__device_models_unlock(device);
}

GMEM__FN void gmem__device_memory_free(const gmem_context *context, struct gmem__device_memory *memory) {
    if (!memory) return;
    gmem__device_models_remove(memory);
    gmem__device_memory_clear(context, memory);
    gmem__blocks_free(context, &memory->blocks);
    gmem__free(context, memory, 1, sizeof *memory);
}

/* places for weights ---------------------------------------------------------------------------------------------- */

static gmem_status gmem__fail_host_memory(const gmem__store *store, gmem_error *error) {
    return gmem__fail_at(error, GMEM_E_MEMORY, store->file ? gmem_file_path(store->file) : NULL, -1,
                         "no memory to bring the weights to the device");
}

static int64_t gmem__buffer_bytes(const gmem__cl_buffer *buffer) {
    return buffer->rows * buffer->cols * (int64_t)gmem_type_bytes(buffer->to);
}

/* `*address` gets as much room as f32 takes, for the type may change. */
static gmem_status gmem__device_place(gmem__store *store, gmem__cl_buffer *buffer, uint64_t *address,
                                      gmem_error *error) {
    if (!store->uploaded) {
        store->uploaded = (gmem__device_memory *)gmem__alloc(store->context, 1, sizeof *store->uploaded);
        if (!store->uploaded) return gmem__fail_host_memory(store, error);
        store->uploaded->device = store->device;
    }
    int64_t room;
    if (!gmem__mul(buffer->rows * buffer->cols, (int64_t)sizeof(float), &room)) room = -1;
    buffer->address = gmem__device_addresses(store->device, room);
    buffer->bytes = gmem__buffer_bytes(buffer);
    if (!buffer->address || !gmem__device_memory_add(store->context, store->uploaded, buffer))
        return gmem__fail_host_memory(store, error);
    *address = buffer->address;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__device_place_vector(gmem__store *store, const float **values, int64_t count,
                                               gmem_error *error) {
    gmem__cl_buffer buffer;
    uint64_t address;
    memset(&buffer, 0, sizeof buffer);
    buffer.host = *values;
    buffer.from = buffer.to = GMEM_F32;
    buffer.rows = 1;
    buffer.cols = buffer.row_stride = count;
    GMEM__TRY(gmem__device_place(store, &buffer, &address, error));
    *values = (const float *)gmem__address_pointer(address);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__device_place_weight(gmem__store *store, gmem__weight *weight, gmem_error *error) {
    gmem__cl_buffer buffer;
    uint64_t address;
    const float *scale = weight->scale;
    memset(&buffer, 0, sizeof buffer);
    buffer.host = weight->data;
    buffer.scale = weight->scale;
    buffer.from = buffer.to = weight->type;
    buffer.rows = weight->rows;
    buffer.cols = weight->cols;
    buffer.row_stride = weight->row_stride;
    buffer.is_matrix = 1;
    if (scale) GMEM__TRY(gmem__device_place_vector(store, &scale, weight->rows, error));
    GMEM__TRY(gmem__device_place(store, &buffer, &address, error));
    weight->data = gmem__address_pointer(address);
    weight->scale = scale;
    weight->row_stride = weight->cols;
    return GMEM_OK;
}

/* The type of weights for products that compute so; theirs where nothing is to change. */
static gmem_type gmem__narrow_type(const gmem__weight *weight, gmem_compute compute) {
    switch (compute) {
    case GMEM_COMPUTE_BF16:
        return GMEM_BF16;
    case GMEM_COMPUTE_F16:
        return GMEM_F16;
    case GMEM_COMPUTE_INT8:
        return GMEM_I8;
    default:
        return weight->type;
    }
}

GMEM__FN gmem_status gmem__device_narrow(gmem__store *store, gmem__weight *weight, gmem_compute compute,
                                         gmem_error *error) {
    float *measured = NULL;
    if (compute == GMEM_COMPUTE_INT8 && weight->cols > (1 << 16)) compute = GMEM_COMPUTE_F32; /* sums overflow */
    weight->compute = compute;
    const gmem_type type = gmem__narrow_type(weight, compute);
    if (type == weight->type) return GMEM_OK;
    const float *scale = NULL;
    if (type == GMEM_I8) {
        scale = measured = (float *)gmem__store_alloc(store, weight->rows, sizeof *measured);
        if (!measured) return gmem__fail_host_memory(store, error);
        GMEM__TRY(gmem__device_place_vector(store, &scale, weight->rows, error));
    }
    const int64_t i = gmem__device_memory_search(store->uploaded, gmem__pointer_address(weight->data));
    gmem__cl_buffer *buffer = &store->uploaded->buffers[i];
    buffer->to = type;
    buffer->bytes = gmem__buffer_bytes(buffer);
    buffer->measured = measured;
    weight->type = type;
    weight->scale = scale;
    return GMEM_OK;
}

/* conversion ------------------------------------------------------------------------------------------------------ */

/* Whether the host's bytes are what the device wants. */
static int gmem__lies_ready(const gmem__cl_buffer *buffer) {
    return buffer->from == buffer->to && (buffer->rows == 1 || buffer->row_stride == buffer->cols);
}

/* max |x|, or NaN where one is not finite. */
static float gmem__largest_of(const float *x, int64_t count) {
    float largest = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!(fabsf(x[i]) <= FLT_MAX)) return NAN;
        if (fabsf(x[i]) > largest) largest = fabsf(x[i]);
    }
    return largest;
}

/* As the CPU's kernels quantise (narrow.inc): divided by max |x| / 127, to nearest even. A row that is not finite gets
 * zeros and the scale NaN. */
static void gmem__cl_quantise_row(const float *x, int64_t count, float *scale, signed char *out) {
    *scale = gmem__largest_of(x, count) / 127;
    const float inverse = *scale > 0 ? 1 / *scale : 0;
    for (int64_t i = 0; i < count; i++) {
        const float value = x[i] * inverse;
        out[i] = (signed char)(value > -128.5f && value < 127.5f ? (int)rintf(value) : 0);
    }
}

/* One row to `out`, side by side in the new type; values (cols) is for what lies between. */
static void gmem__convert_row(const gmem__cl_buffer *buffer, int64_t row, float *values, void *out) {
    const int64_t from_bytes = (int64_t)gmem_type_bytes(buffer->from);
    const char *data = (const char *)buffer->host + row * buffer->row_stride * from_bytes;
    if (buffer->from == buffer->to) {
        memcpy(out, data, (size_t)(buffer->cols * from_bytes));
        return;
    }
    const gmem_tensor tensor = gmem_tensor_make("", buffer->from, 1, &buffer->cols, data);
    gmem_tensor_read_f32(&tensor, 0, buffer->cols, values);
    for (int64_t i = 0; buffer->scale && i < buffer->cols; i++)
        values[i] *= buffer->scale[row];
    if (buffer->to == GMEM_I8)
        gmem__cl_quantise_row(values, buffer->cols, buffer->measured + row, (signed char *)out);
    else
        gmem_convert_f32(values, buffer->cols, buffer->to, out);
}

static void gmem__convert_rows(const gmem__cl_buffer *buffer, int64_t row, int64_t count, float *values, void *out) {
    const int64_t bytes = buffer->cols * (int64_t)gmem_type_bytes(buffer->to);
    for (int64_t r = 0; r < count; r++)
        gmem__convert_row(buffer, row + r, values, (char *)out + r * bytes);
}

/* What is streamed again and again is converted once, on the host; 0 without memory. */
static int gmem__make_ready(gmem__device_memory *memory, gmem__cl_buffer *buffer) {
    const gmem_context *context = memory->device->context;
    if (gmem__lies_ready(buffer)) return 1;
    void *copy = gmem__blocks_take_raw(context, &memory->blocks, buffer->bytes);
    float *values = (float *)gmem__alloc_raw(context, buffer->cols, sizeof *values);
    if (copy && values) {
        gmem__convert_rows(buffer, 0, buffer->rows, values, copy);
        buffer->host = copy;
        buffer->scale = NULL;
        buffer->from = buffer->to;
        buffer->row_stride = buffer->cols;
    }
    gmem__free(context, values, buffer->cols, sizeof *values);
    return copy && values;
}

/* giving way ------------------------------------------------------------------------------------------------------ */

GMEM__FN int gmem__device_buffer_hold(gmem__cl_buffer *buffer) {
    int64_t users = GMEM__ATOMIC_LOAD(&buffer->users);
    while (users >= 0 && !gmem__replace(&buffer->users, users, users + 1))
        users = GMEM__ATOMIC_LOAD(&buffer->users);
    return users >= 0;
}

GMEM__FN void gmem__device_buffer_let_go(gmem__cl_buffer *buffer) {
    if (buffer) (void)gmem__count_up(&buffer->users, -1);
}

static void gmem__count_streamed(gmem__device_memory *memory, const gmem__cl_buffer *buffer) {
    memory->streamed_bytes += buffer->bytes;
    if (memory->largest_streamed < buffer->bytes) GMEM__ATOMIC_STORE(&memory->largest_streamed, buffer->bytes);
}

/* What the device holds of matrices. */
static int64_t gmem__device_givable(struct gmem__device *device) {
    int64_t bytes = 0;
    gmem__device_models_lock(device);
    for (const gmem__device_memory *memory = device->memories; memory; memory = memory->next)
        for (int64_t i = 0; i < memory->count; i++)
            if (memory->buffers[i].is_matrix && memory->buffers[i].memory) bytes += memory->buffers[i].bytes;
    gmem__device_models_unlock(device);
    return bytes;
}

/* From now on the matrix is streamed, unless somebody uses it. Commands that do keep the driver's memory until they are
 * done. Returns its bytes, or 0. */
static int64_t gmem__buffer_give_way(gmem__device_memory *memory, gmem__cl_buffer *buffer) {
    if (!buffer->is_matrix || GMEM__ATOMIC_LOAD(&buffer->users) != 0) return 0;
    if (!gmem__make_ready(memory, buffer)) return 0;
    if (!gmem__replace(&buffer->users, 0, -1)) return 0; /* somebody has come */
    gmem__device_buffer_release(memory->device, buffer->memory, buffer->bytes);
    buffer->memory = NULL;
    memory->resident_bytes -= buffer->bytes;
    gmem__count_streamed(memory, buffer);
    return buffer->bytes;
}

/* So many bytes of matrices, or as many as can. The model opened last, which is the decoder where there is one, runs
 * least often; of a model it is the end that is streamed. */
static int64_t gmem__device_give_way(struct gmem__device *device, int64_t bytes) {
    int64_t given = 0;
    gmem__device_models_lock(device);
    for (gmem__device_memory *memory = device->memories; memory; memory = memory->next)
        for (int64_t i = memory->count - 1; i >= 0 && given < bytes; i--)
            given += gmem__buffer_give_way(memory, &memory->buffers[i]);
    gmem__device_models_unlock(device);
    if (given)
        gmem__log(device->context, "%s: %lld MB of weights give way to activations and are streamed from now on",
                  device->found.limits.name, (long long)(given + 999999) / 1000000);
    return given;
}

static gmem_status gmem__fail_room(struct gmem__device *device, int64_t bytes, gmem_error *error) {
    const gmem__cl_limits *limits = &device->found.limits;
    return gmem__fail(error, GMEM_E_MEMORY, "%s: %lld bytes are wanted, %lld of %lld are in use", limits->name,
                      (long long)bytes, (long long)(limits->memory - gmem__device_left(device)),
                      (long long)limits->memory);
}

GMEM__FN gmem_status gmem__device_make_room(struct gmem__device *device, int64_t bytes, gmem_error *error) {
    const int64_t lacking = bytes - gmem__device_left(device);
    if (lacking <= 0) return GMEM_OK;
    if (lacking <= gmem__device_givable(device) && gmem__device_give_way(device, lacking) >= lacking) return GMEM_OK;
    return gmem__fail_room(device, bytes, error);
}

GMEM__FN gmem_status gmem__device_buffer_make(struct gmem__device *device, int64_t bytes, gmem__cl_mem *out,
                                              gmem_error *error) {
    gmem_error why;
    gmem_status status = GMEM_OK;
    if (bytes <= device->found.limits.largest) GMEM__TRY(gmem__device_make_room(device, bytes, error));
    do
        status = gmem__device_buffer(device, bytes, NULL, out, &why);
    while (status == GMEM_E_MEMORY && bytes <= device->found.limits.largest && gmem__device_give_way(device, bytes));
    if (status != GMEM_OK && error) *error = why;
    return status;
}

/* upload ---------------------------------------------------------------------------------------------------------- */

#define GMEM__UPLOAD_CHUNK ((int64_t)4 << 20) /* bytes that are converted at a time */
#define GMEM__WRAP_ALIGN   64                 /* of a cache line: vectors of any width may be read */

typedef struct gmem__upload {
    gmem__store *store;
    gmem__device_memory *memory;
    gmem__cl_queue queue;
    gmem_error *error;
} gmem__upload;

static gmem_status gmem__upload_write(const gmem__upload *upload, gmem__cl_mem memory, int64_t offset, int64_t bytes,
                                      const void *from) {
    const gmem__cl_api *api = &upload->store->device->library.api;
    const int32_t status =
        api->clEnqueueWriteBuffer(upload->queue, memory, 1, (size_t)offset, (size_t)bytes, from, 0, NULL, NULL);
    return status == GMEM__CL_SUCCESS ? GMEM_OK : gmem__cl_fail(upload->error, "clEnqueueWriteBuffer", status);
}

/* Chunk by chunk through memory of the host. */
static gmem_status gmem__upload_converted(const gmem__upload *upload, const gmem__cl_buffer *buffer) {
    const gmem_context *context = upload->store->context;
    const int64_t row_bytes = buffer->cols * (int64_t)gmem_type_bytes(buffer->to);
    const int64_t chunk = gmem__max(1, gmem__min(buffer->rows, GMEM__UPLOAD_CHUNK / row_bytes));
    const int64_t bytes = chunk * row_bytes, values_bytes = buffer->cols * (int64_t)sizeof(float);
    float *values = (float *)gmem__alloc_raw(context, values_bytes + bytes, 1);
    if (!values) return gmem__fail_host_memory(upload->store, upload->error);
    gmem_status status = GMEM_OK;
    for (int64_t row = 0; row < buffer->rows && status == GMEM_OK; row += chunk) {
        const int64_t count = gmem__min(chunk, buffer->rows - row);
        gmem__convert_rows(buffer, row, count, values, values + buffer->cols);
        status = gmem__upload_write(upload, buffer->memory, row * row_bytes, count * row_bytes, values + buffer->cols);
    }
    gmem__free(context, values, values_bytes + bytes, 1);
    return status;
}

/* Makes the host's own memory the buffer, where the device shares it; 0 where that cannot be. */
static int gmem__upload_wrap(const gmem__upload *upload, gmem__cl_buffer *buffer) {
    struct gmem__device *device = upload->store->device;
    if (!device->found.limits.unified && !device->found.limits.is_cpu) return 0;
    if (!gmem__lies_ready(buffer) || (uintptr_t)buffer->host % GMEM__WRAP_ALIGN) return 0;
    if (gmem__device_buffer(device, buffer->bytes, buffer->host, &buffer->memory, NULL) != GMEM_OK) return 0;
    upload->memory->wraps = 1;
    upload->memory->resident_bytes += buffer->bytes;
    return 1;
}

static gmem_status gmem__upload_fill(const gmem__upload *upload, const gmem__cl_buffer *buffer) {
    upload->memory->resident_bytes += buffer->bytes;
    if (!gmem__lies_ready(buffer)) return gmem__upload_converted(upload, buffer);
    return gmem__upload_write(upload, buffer->memory, 0, buffer->bytes, buffer->host);
}

static gmem_status gmem__upload_streamed(const gmem__upload *upload, gmem__cl_buffer *buffer) {
    if (!gmem__make_ready(upload->memory, buffer)) return gmem__fail_host_memory(upload->store, upload->error);
    buffer->users = -1;
    gmem__count_streamed(upload->memory, buffer);
    return GMEM_OK;
}

/* How many of a weight's rows go into one buffer: all, or where that is too large as many as fit. Of more than a few,
 * so many that the next piece begins as well aligned as the whole. */
static int64_t gmem__cut_rows(const gmem__device_memory *memory, const gmem__cl_buffer *buffer) {
    const int64_t largest = memory->device->found.limits.largest;
    if (!buffer->is_matrix || buffer->bytes <= largest) return buffer->rows;
    const int64_t rows = gmem__max(1, largest / (buffer->bytes / buffer->rows));
    return rows > GMEM__WRAP_ALIGN ? rows - rows % GMEM__WRAP_ALIGN : rows;
}

static gmem__cl_buffer gmem__cut_piece(const gmem__cl_buffer *buffer, int64_t row, int64_t rows) {
    gmem__cl_buffer piece = *buffer;
    piece.address += (uint64_t)(buffer->bytes / buffer->rows * row);
    piece.rows = rows;
    piece.bytes = gmem__buffer_bytes(&piece);
    piece.host = (const char *)buffer->host + row * buffer->row_stride * (int64_t)gmem_type_bytes(buffer->from);
    piece.scale = buffer->scale ? buffer->scale + row : NULL;
    piece.measured = buffer->measured ? buffer->measured + row : NULL;
    return piece;
}

/* Appends the buffer to `out`, in pieces where it is too large. */
static int gmem__cut_buffer(const gmem__store *store, const gmem__cl_buffer *buffer, gmem__device_memory *out) {
    const int64_t rows = gmem__cut_rows(out, buffer);
    for (int64_t row = 0; row < buffer->rows; row += rows) {
        const gmem__cl_buffer piece = gmem__cut_piece(buffer, row, gmem__min(rows, buffer->rows - row));
        if (!gmem__device_memory_add(store->context, out, &piece)) return 0;
    }
    return 1;
}

/* Weights too large for one buffer become several, of whole rows at consecutive addresses. */
static gmem_status gmem__upload_cut(gmem__store *store, gmem_error *error) {
    gmem__device_memory *memory = store->uploaded, cut = *memory;
    int64_t whole = 0;
    while (whole < memory->count && gmem__cut_rows(memory, &memory->buffers[whole]) == memory->buffers[whole].rows)
        whole++;
    if (whole == memory->count) return GMEM_OK;
    cut.buffers = NULL;
    cut.count = cut.capacity = 0;
    for (int64_t i = 0; i < memory->count; i++) {
        if (gmem__cut_buffer(store, &memory->buffers[i], &cut)) continue;
        gmem__device_memory_clear(store->context, &cut);
        return gmem__fail_host_memory(store, error);
    }
    gmem__device_memory_clear(store->context, memory); /* nothing is on the device yet */
    *memory = cut;
    return GMEM_OK;
}

/* Bytes of matrices that may stay on the device: what other networks, vectors and activations leave of it, and where
 * that is not enough for all of them, also the slots through which the others are streamed. */
static int64_t gmem__upload_room(const gmem__device_memory *memory) {
    int64_t vectors = 0, matrices = 0, largest = 0;
    for (int64_t i = 0; i < memory->count; i++) {
        const gmem__cl_buffer *buffer = &memory->buffers[i];
        if (!buffer->is_matrix) vectors += buffer->bytes;
        if (!buffer->is_matrix) continue;
        matrices += buffer->bytes;
        largest = gmem__max(largest, buffer->bytes);
    }
    const int64_t activations = gmem__min(memory->device->found.limits.memory / 4, GMEM__CL_ACTIVATIONS);
    const int64_t room = gmem__device_left(memory->device) - activations - vectors;
    return matrices <= room ? room : room - GMEM__CL_POOL * largest;
}

/* On the device where there is room. A driver may have less than it says: then the rest is streamed. */
static gmem_status gmem__upload_matrix(const gmem__upload *upload, gmem__cl_buffer *buffer, int64_t *room) {
    gmem_error why;
    if (buffer->bytes > *room) return gmem__upload_streamed(upload, buffer);
    *room -= buffer->bytes;
    if (gmem__upload_wrap(upload, buffer)) return GMEM_OK;
    const gmem_status status = gmem__device_buffer(upload->store->device, buffer->bytes, NULL, &buffer->memory, &why);
    if (status == GMEM_OK) return gmem__upload_fill(upload, buffer);
    if (status != GMEM_E_MEMORY) {
        if (upload->error) *upload->error = why;
        return status;
    }
    *room = 0;
    return gmem__upload_streamed(upload, buffer);
}

/* In the order in which they were taken, so that what is streamed comes at the end. */
static gmem_status gmem__upload_matrices(const gmem__upload *upload) {
    gmem__device_memory *memory = upload->memory;
    int64_t room = gmem__upload_room(memory);
    for (int64_t i = 0; i < memory->count; i++)
        if (memory->buffers[i].is_matrix) GMEM__TRY(gmem__upload_matrix(upload, &memory->buffers[i], &room));
    return GMEM_OK;
}

/* After the matrices, whose conversion finds the scales; a vector stays, whatever has to give way. */
static gmem_status gmem__upload_vectors(const gmem__upload *upload) {
    gmem__device_memory *memory = upload->memory;
    for (int64_t i = 0; i < memory->count; i++) {
        gmem__cl_buffer *buffer = &memory->buffers[i];
        if (buffer->is_matrix || gmem__upload_wrap(upload, buffer)) continue;
        GMEM__TRY(gmem__device_buffer_make(memory->device, buffer->bytes, &buffer->memory, upload->error));
        GMEM__TRY(gmem__upload_fill(upload, buffer));
    }
    return GMEM_OK;
}

/* A device on which nothing could run is refused when a network is opened, not in its first pass. */
static gmem_status gmem__upload_check(const gmem__device_memory *memory, gmem_error *error) {
    const gmem__cl_limits *limits = &memory->device->found.limits;
    const int64_t left = gmem__device_left(memory->device) + gmem__device_givable(memory->device);
    if (memory->largest_streamed <= gmem__min(left, limits->largest)) return GMEM_OK;
    return gmem__fail(error, GMEM_E_MEMORY,
                      "%s: a weight of %lld bytes cannot be streamed: %lld are left, %lld at once", limits->name,
                      (long long)memory->largest_streamed, (long long)left, (long long)limits->largest);
}

static void gmem__upload_log(const gmem__device_memory *memory) {
    if (memory->streamed_bytes)
        gmem__log(memory->device->context,
                  "%s: %lld MB of weights stay on the device, %lld MB do not fit and are streamed in every pass",
                  memory->device->found.limits.name, (long long)memory->resident_bytes / 1000000,
                  (long long)(memory->streamed_bytes + 999999) / 1000000);
}

GMEM__FN gmem_status gmem__device_upload(gmem__store *store, gmem_error *error) {
    const struct gmem__device *device = store->device;
    const gmem__cl_api *api = &device->library.api;
    gmem__upload upload;
    int32_t code = GMEM__CL_SUCCESS;
    if (!store->uploaded) return GMEM_OK;
    GMEM__TRY(gmem__upload_cut(store, error));
    upload.store = store;
    upload.memory = store->uploaded;
    upload.error = error;
    upload.queue = api->clCreateCommandQueue(device->cl, device->found.id, 0, &code);
    if (code != GMEM__CL_SUCCESS) return gmem__cl_fail(error, "clCreateCommandQueue", code);
    gmem_status status = gmem__upload_matrices(&upload);
    if (status == GMEM_OK) status = gmem__upload_vectors(&upload);
    (void)api->clReleaseCommandQueue(upload.queue);
    if (status == GMEM_OK) gmem__device_models_add(store->uploaded);
    if (status == GMEM_OK) status = gmem__upload_check(store->uploaded, error);
    if (status == GMEM_OK) gmem__upload_log(store->uploaded);
    return status;
}

#undef GMEM__FIRST_ADDRESS
#undef GMEM__LAST_ADDRESS
#undef GMEM__ADDRESS_ALIGN
#undef GMEM__UPLOAD_CHUNK
#undef GMEM__WRAP_ALIGN

#endif /* GMEM_NO_OPENCL */
