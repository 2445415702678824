/* A stream: one engine's queue of operations on a device, in order, with its kernels and its memory. The first failure
 * stays; everything after it is skipped, and closing releases all the same. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#define GMEM__LAUNCHES_A_FLUSH 16 /* some drivers start nothing before they are asked to */

static const gmem__cl_api *gmem__stream_api(const struct gmem__stream *stream) { return &stream->device->library.api; }

/* failures -------------------------------------------------------------------------------------------------------- */

GMEM__FN int gmem__stream_check(struct gmem__stream *stream, const char *call, int code) {
    if (code == GMEM__CL_SUCCESS) return 1;
    if (gmem__stream_ok(stream)) (void)gmem__cl_fail(&stream->failed, call, code);
    return 0;
}

GMEM__FN void gmem__stream_fail(struct gmem__stream *stream, gmem_status code, const char *message) {
    if (gmem__stream_ok(stream)) (void)gmem__fail(&stream->failed, code, "%s", message);
}

/* The matrix that the operation at hand launches with, or NULL. Returns 0 where it is not on the device. */
static int gmem__stream_hold(struct gmem__stream *stream, gmem__cl_buffer *buffer) {
    if (stream->held == buffer) return 1;
    gmem__device_buffer_let_go(stream->held);
    stream->held = buffer && gmem__device_buffer_hold(buffer) ? buffer : NULL;
    return stream->held == buffer;
}

/* What gives way is there again when the commands that use it are done: this stream's are then. */
static gmem_status gmem__stream_make(struct gmem__stream *stream, int64_t bytes, gmem__cl_mem *out, gmem_error *error) {
    struct gmem__device *device = stream->device;
    if (bytes > gmem__device_left(device)) (void)device->library.api.clFinish(stream->queue);
    return gmem__device_buffer_make(device, bytes, out, error);
}

GMEM__FN void gmem__stream_finish(struct gmem__stream *stream) {
    if (!gmem__stream_ok(stream)) return;
    (void)gmem__stream_check(stream, "clFinish", gmem__stream_api(stream)->clFinish(stream->queue));
    stream->launches = 0;
    (void)gmem__stream_hold(stream, NULL);
}

/* open and close -------------------------------------------------------------------------------------------------- */

static void gmem__stream_start(struct gmem__stream *stream) {
    const int none = 0;
    int32_t status = GMEM__CL_SUCCESS;
    gmem__cl_queue queue =
        gmem__stream_api(stream)->clCreateCommandQueue(stream->device->cl, stream->device->found.id, 0, &status);
    if (!gmem__stream_check(stream, "clCreateCommandQueue", status)) return;
    stream->queue = queue;
    if (gmem__stream_make(stream, sizeof none, &stream->notes, &stream->failed) == GMEM_OK)
        gmem__stream_write(stream, NULL, &none, sizeof none);
}

GMEM__FN gmem_status gmem__stream_open(struct gmem__device *device, const struct gmem__device_memory *shared,
                                       struct gmem__stream **out, gmem_error *error) {
    struct gmem__stream *stream = (struct gmem__stream *)gmem__alloc(device->context, 1, sizeof *stream);
    if (!stream) return gmem__fail(error, GMEM_E_MEMORY, "no memory for an engine on %s", device->found.limits.name);
    stream->device = stream->own.device = device;
    stream->shared = shared;
    stream->reads_host = shared && shared->wraps;
    gmem__stream_start(stream);
    if (!gmem__stream_ok(stream)) {
        const gmem_status status = stream->failed.code;
        if (error) *error = stream->failed;
        gmem__stream_close(stream);
        return status;
    }
    *out = stream;
    return GMEM_OK;
}

static void gmem__scratch_release(struct gmem__stream *stream, int which) {
    gmem__device_buffer_release(stream->device, stream->scratch[which].memory, stream->scratch[which].bytes);
    memset(&stream->scratch[which], 0, sizeof stream->scratch[which]);
}

static void gmem__pool_release(struct gmem__stream *stream, int slot) {
    gmem__device_buffer_release(stream->device, stream->pool[slot].memory, stream->pool[slot].bytes);
    memset(&stream->pool[slot], 0, sizeof stream->pool[slot]);
}

/* What operations have taken besides activations. */
static void gmem__stream_release_rest(struct gmem__stream *stream) {
    for (int i = 0; i < GMEM__CL_SCRATCHES; i++)
        gmem__scratch_release(stream, i);
    for (int i = 0; i < GMEM__CL_POOL; i++)
        gmem__pool_release(stream, i);
}

/* What the host may let go of after this, commands must not read any more. Other commands are not waited for after a
 * failure, for the device may be gone: their memory is the driver's until they are done. */
static void gmem__stream_part(struct gmem__stream *stream) {
    if (stream->queue && (gmem__stream_ok(stream) || stream->reads_host))
        (void)gmem__stream_api(stream)->clFinish(stream->queue);
}

GMEM__FN void gmem__stream_close(struct gmem__stream *stream) {
    if (!stream) return;
    struct gmem__device *device = stream->device;
    const gmem__cl_api *api = gmem__stream_api(stream);
    gmem__stream_part(stream);
    (void)gmem__stream_hold(stream, NULL);
    for (int i = 0; i < GMEM__CL_KERNEL_COUNT; i++)
        if (stream->kernels[i]) (void)api->clReleaseKernel(stream->kernels[i]);
    gmem__stream_release_rest(stream);
    gmem__device_buffer_release(device, stream->notes, sizeof(int));
    gmem__device_memory_clear(device->context, &stream->own);
    if (stream->queue) (void)api->clReleaseCommandQueue(stream->queue);
    gmem__free(device->context, stream, 1, sizeof *stream);
}

/* streamed weights ------------------------------------------------------------------------------------------------ */

/* A new slot: where it is to be the only one, others give way to it. */
static gmem_status gmem__pool_add(struct gmem__stream *stream, int slot, int only) {
    const int64_t bytes = GMEM__ATOMIC_LOAD(&stream->shared->largest_streamed);
    gmem__cl_mem *memory = &stream->pool[slot].memory;
    gmem_error error;
    const gmem_status status = only ? gmem__stream_make(stream, bytes, memory, &error)
                                    : gmem__device_buffer(stream->device, bytes, NULL, memory, &error);
    if (status == GMEM_OK) stream->pool[slot].bytes = bytes;
    if (status != GMEM_OK && only) stream->failed = error;
    return status;
}

/* The slot that holds the weight, else a new one, else where there is no more memory for that the one used longest ago;
 * -1 and a failed stream where there is none at all. Slots from before a larger weight gave way are made anew. */
static int gmem__pool_slot(struct gmem__stream *stream, const gmem__cl_buffer *buffer) {
    int slot = -1, empty = -1;
    for (int i = 0; i < GMEM__CL_POOL; i++) {
        if (stream->pool[i].memory && stream->pool[i].address == buffer->address) return i;
        if (stream->pool[i].bytes < buffer->bytes) {
            gmem__pool_release(stream, i);
            empty = i;
        } else if (slot < 0 || stream->pool[i].used < stream->pool[slot].used) {
            slot = i;
        }
    }
    return empty >= 0 && gmem__pool_add(stream, empty, slot < 0) == GMEM_OK ? empty : slot;
}

/* Commands run in order, so what still reads a slot has done so before it is overwritten. */
static gmem__cl_mem gmem__stream_weight(struct gmem__stream *stream, const gmem__cl_buffer *buffer) {
    const int slot = gmem__pool_slot(stream, buffer);
    if (slot < 0) return NULL;
    gmem__cl_mem memory = stream->pool[slot].memory;
    stream->pool[slot].used = ++stream->clock;
    if (stream->pool[slot].address == buffer->address) return memory;
    stream->pool[slot].address = buffer->address;
    stream->reads_host = 1;
    const int32_t status = gmem__stream_api(stream)->clEnqueueWriteBuffer(
        stream->queue, memory, 0, 0, (size_t)buffer->bytes, buffer->host, 0, NULL, NULL);
    return gmem__stream_check(stream, "clEnqueueWriteBuffer", status) ? memory : NULL;
}

/* places ---------------------------------------------------------------------------------------------------------- */

static gmem__cl_buffer *gmem__stream_buffer(const struct gmem__stream *stream, uint64_t address) {
    gmem__cl_buffer *buffer = gmem__device_memory_find(&stream->own, address);
    return buffer || !stream->shared ? buffer : gmem__device_memory_find(stream->shared, address);
}

static void gmem__stream_fail_address(struct gmem__stream *stream) {
    gmem__stream_fail(stream, GMEM_E_ARGUMENT, "an operation was given memory that is not the device's");
}

GMEM__FN gmem__cl_place gmem__stream_find(struct gmem__stream *stream, const void *address_) {
    const uint64_t address = (uint64_t)(uintptr_t)address_;
    gmem__cl_place place = {NULL, 0};
    if (!gmem__stream_ok(stream)) return place;
    if (!address_) {
        place.memory = stream->notes;
        return place;
    }
    gmem__cl_buffer *buffer = gmem__stream_buffer(stream, address);
    if (!buffer) {
        gmem__stream_fail_address(stream);
        return place;
    }
    if (!buffer->is_matrix || gmem__stream_hold(stream, buffer))
        place.memory = buffer->memory;
    else
        place.memory = gmem__stream_weight(stream, buffer);
    place.offset = (int64_t)(address - buffer->address);
    return place;
}

/* walks ----------------------------------------------------------------------------------------------------------- */

#define GMEM__WALK_MOST ((int64_t)1 << 30) /* things of a piece: kernels count in ints */

GMEM__FN gmem__cl_walk gmem__cl_walk_start(struct gmem__stream *stream, int64_t count) {
    gmem__cl_walk walk;
    memset(&walk, 0, sizeof walk);
    walk.stream = stream;
    walk.count = count;
    return walk;
}

GMEM__FN void gmem__walk_along(gmem__cl_walk *walk, const void *address, int64_t step, int64_t bytes) {
    const uint64_t first = (uint64_t)(uintptr_t)address, end = first + (uint64_t)((walk->count - 1) * step + bytes);
    if (!address || walk->count <= 0) return;
    if (!gmem__stream_buffer(walk->stream, end - 1)) gmem__stream_fail_address(walk->stream);
    walk->tensor[walk->tensors].address = first;
    walk->tensor[walk->tensors].step = step;
    walk->tensor[walk->tensors++].bytes = bytes;
}

/* How many things of the tensor, from the walk's first on, end in the buffer in which that one begins. */
static int64_t gmem__walk_whole(const gmem__cl_walk *walk, int i) {
    const uint64_t address = walk->tensor[i].address + (uint64_t)(walk->first * walk->tensor[i].step);
    const gmem__cl_buffer *buffer = gmem__stream_buffer(walk->stream, address);
    if (!buffer) return walk->count; /* gmem__stream_find says so */
    const int64_t left = buffer->bytes - (int64_t)(address - buffer->address) - walk->tensor[i].bytes;
    return left < 0 ? 0 : left / walk->tensor[i].step + 1;
}

GMEM__FN int gmem__walk_next(gmem__cl_walk *walk) {
    walk->first += walk->size;
    if (walk->first >= walk->count || !gmem__stream_ok(walk->stream)) return 0;
    walk->size = gmem__min(walk->count - walk->first, GMEM__WALK_MOST);
    for (int i = 0; i < walk->tensors; i++)
        walk->size = gmem__min(walk->size, gmem__walk_whole(walk, i));
    if (walk->size == 0)
        gmem__stream_fail(walk->stream, GMEM_E_ARGUMENT, "an operation was given memory that is cut in its middle");
    return walk->size > 0;
}

GMEM__FN gmem__cl_mem gmem__stream_scratch(struct gmem__stream *stream, int which, int64_t bytes) {
    if (!gmem__stream_ok(stream)) return NULL;
    if (stream->scratch[which].memory && stream->scratch[which].bytes >= bytes) return stream->scratch[which].memory;
    gmem__scratch_release(stream, which);
    stream->scratch[which].bytes = gmem__max(bytes, 1);
    (void)gmem__stream_make(stream, stream->scratch[which].bytes, &stream->scratch[which].memory, &stream->failed);
    return stream->scratch[which].memory;
}

GMEM__FN void gmem__stream_write(struct gmem__stream *stream, const void *address, const void *from, int64_t bytes) {
    gmem__cl_walk walk = gmem__cl_walk_start(stream, bytes);
    gmem__walk_along(&walk, address, 1, 1);
    while (gmem__walk_next(&walk)) {
        const gmem__cl_place place = gmem__stream_find(stream, address ? (const char *)address + walk.first : NULL);
        if (!gmem__stream_ok(stream)) return;
        const int32_t status = gmem__stream_api(stream)->clEnqueueWriteBuffer(
            stream->queue, place.memory, 1, (size_t)place.offset, (size_t)walk.size, (const char *)from + walk.first, 0,
            NULL, NULL);
        (void)gmem__stream_check(stream, "clEnqueueWriteBuffer", status);
    }
}

GMEM__FN void gmem__stream_read(struct gmem__stream *stream, const void *address, void *to, int64_t bytes) {
    gmem__cl_walk walk = gmem__cl_walk_start(stream, bytes);
    gmem__walk_along(&walk, address, 1, 1);
    while (gmem__walk_next(&walk)) {
        const gmem__cl_place place = gmem__stream_find(stream, address ? (const char *)address + walk.first : NULL);
        if (!gmem__stream_ok(stream)) return;
        const int32_t status =
            gmem__stream_api(stream)->clEnqueueReadBuffer(stream->queue, place.memory, 1, (size_t)place.offset,
                                                          (size_t)walk.size, (char *)to + walk.first, 0, NULL, NULL);
        (void)gmem__stream_check(stream, "clEnqueueReadBuffer", status);
    }
}

/* A pass takes about five times its widest activations, scratch included, and is seldom alone. */
GMEM__FN int64_t gmem__stream_largest(const struct gmem__stream *stream) {
    const int64_t slot = stream->shared ? GMEM__ATOMIC_LOAD(&stream->shared->largest_streamed) : 0;
    return gmem__min(stream->device->found.limits.largest, gmem__max(0, gmem__device_left(stream->device) - slot) / 8);
}

/* arenas ---------------------------------------------------------------------------------------------------------- */

/* Makes the memory of [start, end), in pieces where it is too large for one: as many whole grains as one may have.
 * Returns 0 without memory. */
static int gmem__stream_reserve_bytes(struct gmem__stream *stream, const gmem_context *context, int64_t grain,
                                      uint64_t start, uint64_t end) {
    const int64_t largest = stream->device->found.limits.largest, bytes = (int64_t)(end - start);
    const int64_t most = grain > 0 && bytes > largest ? gmem__max(1, largest / grain) * grain : bytes;
    gmem__cl_buffer buffer;
    memset(&buffer, 0, sizeof buffer);
    for (buffer.address = start; buffer.address < end; buffer.address += (uint64_t)buffer.bytes) {
        buffer.bytes = gmem__min(most, (int64_t)(end - buffer.address));
        if (gmem__stream_make(stream, buffer.bytes, &buffer.memory, &stream->failed) != GMEM_OK) return 0;
        if (gmem__device_memory_add(context, &stream->own, &buffer)) continue;
        gmem__device_buffer_release(stream->device, buffer.memory, buffer.bytes);
        gmem__stream_fail(stream, GMEM_E_MEMORY, "no memory for an engine's list of buffers");
        return 0;
    }
    return 1;
}

/* The memory of take i: from where the one before ends, aligned as gmem__take does, to its own end; the last one's
 * reaches to the end of all. */
static int gmem__stream_reserve_take(struct gmem__stream *stream, const gmem_context *context, const gmem__arena *arena,
                                     uint64_t first, int i) {
    const int64_t start = i > 0 ? gmem__round_up(arena->cut[i - 1], 64) : 0;
    const int64_t end = i + 1 < arena->cuts ? arena->cut[i] : arena->bytes;
    return end <= start || /* a take of nothing */
           gmem__stream_reserve_bytes(stream, context, arena->grain, first + (uint64_t)start, first + (uint64_t)end);
}

/* Weights give way all at once, so that the log has one line of it, and only where that is enough. */
static int gmem__stream_make_room(struct gmem__stream *stream, int64_t bytes) {
    (void)gmem__stream_hold(stream, NULL);
    return gmem__device_make_room(stream->device, bytes, &stream->failed) == GMEM_OK;
}

GMEM__FN int gmem__stream_reserve(struct gmem__stream *stream, const gmem_context *context, gmem__arena *arena) {
    arena->bytes = arena->used;
    arena->used = 0;
    if (!gmem__stream_ok(stream)) return 0;
    const uint64_t first = gmem__device_addresses(stream->device, arena->bytes);
    if (!first) {
        gmem__stream_fail(stream, GMEM_E_MEMORY, "activations are larger than what a device can address");
        return 0;
    }
    if (!gmem__stream_make_room(stream, arena->bytes)) return 0;
    for (int i = 0; i < arena->cuts; i++) {
        if (gmem__stream_reserve_take(stream, context, arena, first, i)) continue;
        gmem__device_memory_drop(&stream->own, first, arena->bytes);
        return 0;
    }
    arena->memory = (char *)(uintptr_t)first;
    return 1;
}

GMEM__FN void gmem__stream_release(struct gmem__stream *stream, const gmem_context *context, gmem__arena *arena) {
    (void)context;
    if (!arena->memory) return;
    gmem__device_memory_drop(&stream->own, (uint64_t)(uintptr_t)arena->memory, arena->bytes);
    gmem__stream_release_rest(stream);
    arena->memory = NULL;
}

/* launches -------------------------------------------------------------------------------------------------------- */

static void gmem__stream_make_kernel(struct gmem__stream *stream, gmem__cl_kernel_id id) {
    static const char *const names[] = {
#define GMEM__CL_KERNEL_NAME(name) #name,
        GMEM__CL_KERNELS(GMEM__CL_KERNEL_NAME)
#undef GMEM__CL_KERNEL_NAME
    };
    const struct gmem__device *device = stream->device;
    const gmem__cl_api *api = gmem__stream_api(stream);
    size_t most = 0;
    int32_t status = GMEM__CL_SUCCESS;
    gmem__cl_kernel kernel = api->clCreateKernel(device->program, names[id], &status);
    if (!gmem__stream_check(stream, "clCreateKernel", status)) return;
    stream->kernels[id] = kernel;
    status = api->clGetKernelWorkGroupInfo(kernel, device->found.id, GMEM__CL_KERNEL_WORK_GROUP_SIZE, sizeof most,
                                           &most, NULL);
    if (!gmem__stream_check(stream, "clGetKernelWorkGroupInfo", status)) return;
    stream->work_group[id] = gmem__max(1, gmem__min((int64_t)most, device->found.limits.work_group));
}

GMEM__FN gmem__cl_launch gmem__launch(struct gmem__stream *stream, gmem__cl_kernel_id kernel) {
    gmem__cl_launch launch;
    launch.stream = stream;
    launch.kernel = kernel;
    launch.count = 0;
    if (gmem__stream_ok(stream) && !stream->kernels[kernel]) gmem__stream_make_kernel(stream, kernel);
    return launch;
}

static void gmem__launch_argument(gmem__cl_launch *launch, size_t bytes, const void *value) {
    struct gmem__stream *stream = launch->stream;
    if (!gmem__stream_ok(stream)) return;
    const int32_t status =
        gmem__stream_api(stream)->clSetKernelArg(stream->kernels[launch->kernel], launch->count++, bytes, value);
    (void)gmem__stream_check(stream, "clSetKernelArg", status);
}

GMEM__FN void gmem__launch_buffer(gmem__cl_launch *launch, gmem__cl_mem memory, int64_t elements) {
    const uint64_t at = (uint64_t)elements;
    gmem__launch_argument(launch, sizeof memory, &memory);
    gmem__launch_argument(launch, sizeof at, &at);
}

GMEM__FN void gmem__launch_pointer(gmem__cl_launch *launch, const void *address, size_t element) {
    const gmem__cl_place place = gmem__stream_find(launch->stream, address);
    if (place.offset % (int64_t)element != 0)
        gmem__stream_fail(launch->stream, GMEM_E_ARGUMENT, "an operation was given an address between two elements");
    gmem__launch_buffer(launch, place.memory, place.offset / (int64_t)element);
}

GMEM__FN void gmem__launch_int(gmem__cl_launch *launch, int64_t value) {
    const int32_t number = (int32_t)value;
    if (number != value)
        gmem__stream_fail(launch->stream, GMEM_E_ARGUMENT, "an operation has a size beyond what a kernel counts");
    gmem__launch_argument(launch, sizeof number, &number);
}

GMEM__FN void gmem__launch_float(gmem__cl_launch *launch, float value) {
    gmem__launch_argument(launch, sizeof value, &value);
}

GMEM__FN void gmem__launch_local(gmem__cl_launch *launch, size_t bytes) { gmem__launch_argument(launch, bytes, NULL); }

/* A work-group as asked for, or the largest below it that device and kernel can do. */
static void gmem__launch_fit(const gmem__cl_launch *launch, int dimensions, int64_t *local) {
    const int64_t *most = launch->stream->device->found.limits.work_items;
    int64_t total = 1;
    for (int i = 0; i < dimensions; i++) {
        while (local[i] > 1 && local[i] > most[i])
            local[i] /= 2;
        total *= local[i];
    }
    while (total > launch->stream->work_group[launch->kernel]) {
        int longest = 0;
        for (int i = 1; i < dimensions; i++)
            if (local[i] > local[longest]) longest = i;
        total /= local[longest];
        local[longest] /= 2;
        total *= local[longest];
    }
}

GMEM__FN void gmem__launch_run(gmem__cl_launch *launch, int dimensions, const int64_t *global, const int64_t *local) {
    struct gmem__stream *stream = launch->stream;
    const gmem__cl_api *api = gmem__stream_api(stream);
    int64_t fitting[3] = {1, 1, 1};
    size_t global_size[3], local_size[3];
    if (!gmem__stream_ok(stream)) return;
    if (local) memcpy(fitting, local, (size_t)dimensions * sizeof *local);
    if (local) gmem__launch_fit(launch, dimensions, fitting);
    for (int i = 0; i < dimensions; i++) {
        if (global[i] <= 0) return; /* nothing to do */
        local_size[i] = (size_t)fitting[i];
        global_size[i] = (size_t)gmem__round_up(global[i], fitting[i]);
    }
    const int32_t status =
        api->clEnqueueNDRangeKernel(stream->queue, stream->kernels[launch->kernel], (uint32_t)dimensions, NULL,
                                    global_size, local ? local_size : NULL, 0, NULL, NULL);
    if (!gmem__stream_check(stream, "clEnqueueNDRangeKernel", status)) return;
    if (++stream->launches < GMEM__LAUNCHES_A_FLUSH) return;
    stream->launches = 0;
    (void)gmem__stream_check(stream, "clFlush", api->clFlush(stream->queue));
}

#undef GMEM__LAUNCHES_A_FLUSH
#undef GMEM__WALK_MOST

#endif /* GMEM_NO_OPENCL */
