/* A pickle machine that builds data and never calls anything: protocols 2 to 4, the opcodes that torch.save emits.
 * Opcodes as in CPython's Lib/pickletools.py; what torch puts into its pickles as in torch/serialization.py and
 * torch/_utils.py. Every opcode costs a time bounded by its own bytes or by the stack items it consumes, so the work is
 * linear in the input; memory is bounded by a budget. There is no recursion. */
#include "pickle.h"

enum {
    GMEM__PICKLE_MAX_GLOBAL = 512,   /* bytes of a global's module or name */
    GMEM__PICKLE_MAX_FOREIGN = 1024, /* distinct globals that stay inert */
    GMEM__PICKLE_NAME_COST = 96      /* bytes of a name table per name, growing included */
};

/* Handles of the nodes that every pickle starts with. */
enum { GMEM__HANDLE_NONE, GMEM__HANDLE_FALSE, GMEM__HANDLE_TRUE, GMEM__HANDLE_EMPTY_TUPLE, GMEM__HANDLE_FIRST };

/* What REDUCE does with a known function. */
enum {
    GMEM__CALL_ORDERED_DICT,
    GMEM__CALL_SIZE,
    GMEM__CALL_DEVICE,
    GMEM__CALL_TENSOR,
    GMEM__CALL_TENSOR_V2,
    GMEM__CALL_PARAMETER
};

static gmem_status gmem__pickle_fail(const gmem__pickle *p, gmem_status code, const char *what) {
    return gmem__fail_at(p->error, code, p->file->path, p->start + p->at, "%s", what);
}

static uint64_t gmem__pickle_unsigned(const unsigned char *bytes, uint32_t count) {
    uint64_t value = 0;
    for (uint32_t i = count; i-- > 0;)
        value = value << 8 | bytes[i];
    return value;
}

/* memory ----------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__pickle_charge(gmem__pickle *p, int64_t bytes) {
    if (!gmem__file_may_hold(p->file, bytes)) {
        return gmem__pickle_fail(p, GMEM_E_LIMIT, "the pickle builds more than the file's size allows");
    }
    p->held += bytes;
    return GMEM_OK;
}

static void gmem__pickle_release(gmem__pickle *p, int64_t bytes) {
    p->file->held -= bytes;
    p->held -= bytes;
}

static void gmem__pool_free(const gmem__pickle *p, gmem__pool *pool) {
    gmem__free(p->file->context, pool->items, pool->capacity, pool->bytes);
    pool->items = NULL;
    pool->count = pool->capacity = 0;
}

/* Room for one more item. The old array is still held while the new one is filled, and counts until then. */
static gmem_status gmem__pool_reserve(gmem__pickle *p, gmem__pool *pool) {
    if (pool->count < pool->capacity) return GMEM_OK;
    const uint32_t capacity = pool->capacity + pool->capacity / 2 + 64;
    const int64_t old_bytes = (int64_t)pool->capacity * (int64_t)pool->bytes;
    if (capacity >= GMEM__HANDLE_INTEGER) return gmem__pickle_fail(p, GMEM_E_LIMIT, "the pickle builds too much");
    GMEM__TRY(gmem__pickle_charge(p, (int64_t)capacity * (int64_t)pool->bytes));
    void *items = gmem__alloc_raw(p->file->context, capacity, pool->bytes);
    if (!items) return gmem__pickle_fail(p, GMEM_E_MEMORY, "out of memory");
    if (pool->count) memcpy(items, pool->items, (size_t)pool->count * pool->bytes);
    gmem__free(p->file->context, pool->items, pool->capacity, pool->bytes);
    gmem__pickle_release(p, old_bytes);
    pool->items = items;
    pool->capacity = capacity;
    return GMEM_OK;
}

static gmem_status gmem__pool_push_u32(gmem__pickle *p, gmem__pool *pool, uint32_t value) {
    GMEM__TRY(gmem__pool_reserve(p, pool));
    ((uint32_t *)pool->items)[pool->count++] = value;
    return GMEM_OK;
}

/* values ----------------------------------------------------------------------------------------------------------- */

GMEM__FN gmem__node gmem__pickle_node(const gmem__pickle *p, gmem__handle value) {
    if (!(value & GMEM__HANDLE_INTEGER)) return ((const gmem__node *)p->nodes.items)[value];
    gmem__node node;
    memset(&node, 0, sizeof node);
    node.kind = GMEM__KIND_INTEGER;
    node.as.integer = value & ~GMEM__HANDLE_INTEGER;
    return node;
}

static gmem__kind gmem__pickle_kind(const gmem__pickle *p, gmem__handle value) {
    return (gmem__kind)gmem__pickle_node(p, value).kind;
}

static gmem__node gmem__pickle_make(const gmem__pickle *p, gmem__kind kind) {
    gmem__node node;
    memset(&node, 0, sizeof node);
    node.kind = (uint8_t)kind;
    node.at = p->at;
    return node;
}

static gmem_status gmem__pickle_add_node(gmem__pickle *p, gmem__node node, gmem__handle *out) {
    GMEM__TRY(gmem__pool_reserve(p, &p->nodes));
    *out = p->nodes.count;
    ((gmem__node *)p->nodes.items)[p->nodes.count++] = node;
    return GMEM_OK;
}

static gmem_status gmem__pickle_append(gmem__pickle *p, gmem__handle container, gmem__handle item) {
    GMEM__TRY(gmem__pool_reserve(p, &p->cells));
    gmem__cell *cells = (gmem__cell *)p->cells.items;
    gmem__node *node = (gmem__node *)p->nodes.items + container;
    const uint32_t cell = p->cells.count++;
    cells[cell].value = item;
    cells[cell].next = 0;
    if (node->as.list.last) {
        cells[node->as.list.last].next = cell;
    } else {
        node->as.list.first = cell;
    }
    node->as.list.last = cell;
    return GMEM_OK;
}

/* The first `limit` items of a tuple (a tensor is one of arguments); returns how many there are, counting one beyond
 * the limit at most, or -1 where it is no tuple. */
static int gmem__pickle_items(const gmem__pickle *p, const gmem__node *tuple, gmem__handle *items, int limit) {
    int count = 0;
    if (tuple->kind != GMEM__KIND_TUPLE) return -1;
    for (uint32_t cell = tuple->as.list.first; cell && count <= limit; cell = gmem__pickle_cell(p, cell)->next) {
        if (count < limit) items[count] = gmem__pickle_cell(p, cell)->value;
        count++;
    }
    return count;
}

GMEM__FN int gmem__pickle_text_is(const gmem__pickle *p, gmem__handle value, const char *text) {
    gmem__node node = gmem__pickle_node(p, value);
    return node.kind == GMEM__KIND_TEXT && node.as.text.bytes == strlen(text) &&
           memcmp(p->bytes + node.as.text.at, text, node.as.text.bytes) == 0;
}

GMEM__FN int gmem__pickle_lookup(const gmem__pickle *p, gmem__handle dict, const char *key, gmem__handle *out) {
    gmem__node node = gmem__pickle_node(p, dict);
    if (node.kind != GMEM__KIND_DICT && node.kind != GMEM__KIND_ORDERED_DICT) return 0;
    for (uint32_t cell = node.as.list.first; cell;) {
        const gmem__cell *name = gmem__pickle_cell(p, cell), *item = gmem__pickle_cell(p, name->next);
        *out = item->value;
        if (gmem__pickle_text_is(p, name->value, key)) return 1;
        cell = item->next;
    }
    return 0;
}

/* Two's complement of any length to the nearest double: its 64 leading bits, the last of which stands for all that
 * are cut off, are rounded once; the powers of two are exact. */
static double gmem__pickle_long(const unsigned char *bytes, uint32_t count) {
    const int negative = bytes[count - 1] >> 7;
    uint64_t leading = 0;
    uint32_t top = 0, carry = (uint32_t)negative, cut = 0;
    unsigned char magnitude[255];
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t byte = (negative ? (uint32_t)(unsigned char)~bytes[i] : bytes[i]) + carry;
        magnitude[i] = (unsigned char)byte;
        carry = byte >> 8;
        if (magnitude[i]) top = i;
    }
    const uint32_t low = top >= 7 ? top - 7 : 0;
    for (uint32_t i = 0; i < low; i++)
        cut |= magnitude[i];
    for (uint32_t i = top + 1; i-- > low;)
        leading = leading << 8 | magnitude[i];
    double value = (double)(leading | (cut != 0));
    for (uint32_t i = 0; i < low; i++)
        value *= 256.0;
    return negative ? -value : value;
}

GMEM__FN double gmem__pickle_number(const gmem__pickle *p, const gmem__node *node) {
    if (node->kind == GMEM__KIND_INTEGER) return (double)node->as.integer;
    if (node->kind == GMEM__KIND_FLOAT) return node->as.number;
    return gmem__pickle_long(p->bytes + node->as.text.at, node->as.text.bytes);
}

GMEM__FN const char *gmem__pickle_foreign(const gmem__pickle *p, const gmem__node *inert) {
    return ((const char *const *)p->foreign.items)[inert->as.ref.index];
}

/* stack ------------------------------------------------------------------------------------------------------------ */

/* Items above the last mark: those below belong to an unfinished container. */
static uint32_t gmem__pickle_available(const gmem__pickle *p) {
    const uint32_t *marks = (const uint32_t *)p->marks.items;
    return p->stack.count - (p->marks.count ? marks[p->marks.count - 1] : 0);
}

static gmem_status gmem__pickle_need(const gmem__pickle *p, uint32_t count) {
    if (gmem__pickle_available(p) >= count) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle's stack holds too little");
}

static gmem__handle *gmem__pickle_top(const gmem__pickle *p, uint32_t depth) {
    return (gmem__handle *)p->stack.items + (p->stack.count - 1 - depth);
}

static gmem_status gmem__pickle_push(gmem__pickle *p, gmem__handle value) {
    return gmem__pool_push_u32(p, &p->stack, value);
}

static gmem_status gmem__pickle_push_node(gmem__pickle *p, gmem__node node) {
    gmem__handle value;
    GMEM__TRY(gmem__pickle_add_node(p, node, &value));
    return gmem__pickle_push(p, value);
}

/* Ends a marked group: how many items it has. */
static gmem_status gmem__pickle_pop_mark(gmem__pickle *p, uint32_t *count) {
    if (p->marks.count == 0) return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle lacks a mark");
    *count = gmem__pickle_available(p);
    p->marks.count--;
    return GMEM_OK;
}

/* opcodes ---------------------------------------------------------------------------------------------------------- */

/* One opcode: its fixed argument's bytes, and what its handler is told. */
typedef struct gmem__opcode {
    unsigned char code, protocol, argument;
    gmem_status (*run)(gmem__pickle *p, const struct gmem__opcode *op, const unsigned char *argument);
    uint32_t detail;
    uint32_t kind;
} gmem__opcode;

static gmem_status gmem__op_constant(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)argument;
    return gmem__pickle_push(p, op->detail);
}

static gmem_status gmem__op_unsigned(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    return gmem__pickle_push(p, GMEM__HANDLE_INTEGER | (uint32_t)gmem__pickle_unsigned(argument, op->argument));
}

static gmem_status gmem__op_signed(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_INTEGER);
    node.as.integer = (int64_t)gmem__pickle_unsigned(argument, op->argument);
    if (node.as.integer <= INT32_MAX) return gmem__pickle_push(p, GMEM__HANDLE_INTEGER | (uint32_t)node.as.integer);
    node.as.integer -= (int64_t)1 << 32;
    return gmem__pickle_push_node(p, node);
}

static gmem_status gmem__op_long(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const uint32_t count = argument[0];
    (void)op;
    if (count > p->size - p->next) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside an integer");
    gmem__node node = gmem__pickle_make(p, count > 8 ? GMEM__KIND_LONG : GMEM__KIND_INTEGER);
    if (count > 8) {
        node.as.text.at = p->next;
        node.as.text.bytes = count;
    } else if (count > 0) {
        const unsigned char *bytes = p->bytes + p->next;
        const uint64_t sign = bytes[count - 1] & 0x80 && count < 8 ? ~(uint64_t)0 << (8 * count) : 0;
        const uint64_t bits = gmem__pickle_unsigned(bytes, count) | sign;
        memcpy(&node.as.integer, &bits, sizeof bits);
    }
    p->next += count;
    return gmem__pickle_push_node(p, node);
}

static gmem_status gmem__op_float(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_FLOAT);
    uint64_t bits = 0;
    for (int i = 0; i < op->argument; i++)
        bits = bits << 8 | argument[i];
    memcpy(&node.as.number, &bits, sizeof bits);
    return gmem__pickle_push_node(p, node);
}

/* Text and bytes stay where they are in the file. */
static gmem_status gmem__op_text(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const uint32_t bytes = (uint32_t)gmem__pickle_unsigned(argument, op->argument);
    gmem__node node = gmem__pickle_make(p, (gmem__kind)op->kind);
    if (bytes > p->size - p->next) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside a string");
    if (op->kind == GMEM__KIND_TEXT && gmem__utf8_error((const char *)p->bytes + p->next, bytes) >= 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_UTF8, "a pickle string is not UTF-8");
    }
    node.as.text.at = p->next;
    node.as.text.bytes = bytes;
    p->next += bytes;
    return gmem__pickle_push_node(p, node);
}

/* Integers beyond 255 bytes and strings beyond 4 GiB: Python can write them, no checkpoint needs them. */
static gmem_status gmem__op_huge(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    return gmem__pickle_fail(p, GMEM_E_LIMIT, "an integer of more than 255 bytes or a string of more than 4 GiB");
}

static gmem_status gmem__op_mark(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    return gmem__pool_push_u32(p, &p->marks, p->stack.count);
}

static gmem_status gmem__op_empty(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)argument;
    return gmem__pickle_push_node(p, gmem__pickle_make(p, (gmem__kind)op->kind));
}

/* The items of an opcode: since the mark where `detail` is 0, else that many. */
static gmem_status gmem__pickle_group(gmem__pickle *p, const gmem__opcode *op, uint32_t *count) {
    *count = op->detail;
    return op->detail ? gmem__pickle_need(p, op->detail) : gmem__pickle_pop_mark(p, count);
}

/* A tuple or frozenset of the topmost items. */
static gmem_status gmem__op_gather(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    uint32_t count;
    gmem__handle value;
    (void)argument;
    GMEM__TRY(gmem__pickle_group(p, op, &count));
    GMEM__TRY(gmem__pickle_add_node(p, gmem__pickle_make(p, (gmem__kind)op->kind), &value));
    for (uint32_t i = count; i-- > 0;)
        GMEM__TRY(gmem__pickle_append(p, value, *gmem__pickle_top(p, i)));
    p->stack.count -= count;
    return gmem__pickle_push(p, value);
}

static int gmem__pickle_takes(gmem__kind container, uint32_t wanted) {
    return container == (gmem__kind)wanted ||
           (container == GMEM__KIND_ORDERED_DICT && wanted == (uint32_t)GMEM__KIND_DICT);
}

/* Adds the topmost items to the list, set or dictionary below them; an inert value swallows them. */
static gmem_status gmem__op_fill(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    uint32_t count;
    (void)argument;
    GMEM__TRY(gmem__pickle_group(p, op, &count));
    GMEM__TRY(gmem__pickle_need(p, count + 1));
    const gmem__handle container = *gmem__pickle_top(p, count);
    const gmem__kind kind = gmem__pickle_kind(p, container);
    if (op->kind == GMEM__KIND_DICT && count % 2 != 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "a dictionary gets a key without a value");
    }
    if (kind != GMEM__KIND_INERT) {
        if (!gmem__pickle_takes(kind, op->kind)) {
            return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "items are added to what cannot hold them");
        }
        for (uint32_t i = count; i-- > 0;)
            GMEM__TRY(gmem__pickle_append(p, container, *gmem__pickle_top(p, i)));
    }
    p->stack.count -= count;
    return GMEM_OK;
}

/* Python numbers its memo 0, 1, 2 ... */
static gmem_status gmem__op_put(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    GMEM__TRY(gmem__pickle_need(p, 1));
    if (op->argument && gmem__pickle_unsigned(argument, op->argument) != p->memo.count) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle's memo is not numbered in order");
    }
    return gmem__pool_push_u32(p, &p->memo, *gmem__pickle_top(p, 0));
}

static gmem_status gmem__op_get(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const uint32_t index = (uint32_t)gmem__pickle_unsigned(argument, op->argument);
    if (index >= p->memo.count) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle's memo has no such value");
    }
    return gmem__pickle_push(p, ((const uint32_t *)p->memo.items)[index]);
}

static gmem_status gmem__op_frame(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    if (gmem__pickle_unsigned(argument, op->argument) <= p->size - p->next) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside a frame");
}

/* globals ---------------------------------------------------------------------------------------------------------- */

typedef struct gmem__global {
    const char *module, *name;
    gmem__kind kind;
    uint32_t index;
} gmem__global;

#define GMEM__TORCH_STORAGE(name, type) \
    { "torch", #name "Storage", GMEM__KIND_STORAGE_CLASS, GMEM_##type }
#define GMEM__TORCH_DTYPE(name) \
    { "torch", #name, GMEM__KIND_DTYPE, 0 }
static const gmem__global gmem__globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", GMEM__KIND_FUNCTION, GMEM__CALL_TENSOR_V2},
    {"torch._utils", "_rebuild_tensor", GMEM__KIND_FUNCTION, GMEM__CALL_TENSOR},
    {"torch._utils", "_rebuild_parameter", GMEM__KIND_FUNCTION, GMEM__CALL_PARAMETER},
    {"collections", "OrderedDict", GMEM__KIND_FUNCTION, GMEM__CALL_ORDERED_DICT},
    {"torch", "Size", GMEM__KIND_FUNCTION, GMEM__CALL_SIZE},
    {"torch", "device", GMEM__KIND_FUNCTION, GMEM__CALL_DEVICE},
    GMEM__TORCH_STORAGE(Double, F64),
    GMEM__TORCH_STORAGE(Float, F32),
    GMEM__TORCH_STORAGE(Half, F16),
    GMEM__TORCH_STORAGE(BFloat16, BF16),
    GMEM__TORCH_STORAGE(Long, I64),
    GMEM__TORCH_STORAGE(Int, I32),
    GMEM__TORCH_STORAGE(Short, I16),
    GMEM__TORCH_STORAGE(Char, I8),
    GMEM__TORCH_STORAGE(Byte, U8),
    GMEM__TORCH_STORAGE(Bool, BOOL),
    GMEM__TORCH_STORAGE(Untyped, U8),
    {"torch.storage", "UntypedStorage", GMEM__KIND_STORAGE_CLASS, GMEM_U8},
    GMEM__TORCH_DTYPE(float64),
    GMEM__TORCH_DTYPE(float32),
    GMEM__TORCH_DTYPE(float16),
    GMEM__TORCH_DTYPE(bfloat16),
    GMEM__TORCH_DTYPE(int64),
    GMEM__TORCH_DTYPE(int32),
    GMEM__TORCH_DTYPE(int16),
    GMEM__TORCH_DTYPE(int8),
    GMEM__TORCH_DTYPE(uint64),
    GMEM__TORCH_DTYPE(uint32),
    GMEM__TORCH_DTYPE(uint16),
    GMEM__TORCH_DTYPE(uint8),
    GMEM__TORCH_DTYPE(bool),
    GMEM__TORCH_DTYPE(complex32),
    GMEM__TORCH_DTYPE(complex64),
    GMEM__TORCH_DTYPE(complex128),
    GMEM__TORCH_DTYPE(float8_e4m3fn),
    GMEM__TORCH_DTYPE(float8_e5m2),
};
#undef GMEM__TORCH_STORAGE
#undef GMEM__TORCH_DTYPE

GMEM__FN const char *gmem__pickle_dtype_name(const gmem__node *dtype) {
    return gmem__globals[dtype->as.ref.index].name;
}

static int gmem__pickle_same(const unsigned char *text, uint32_t bytes, const char *name) {
    return strlen(name) == bytes && memcmp(text, name, bytes) == 0;
}

/* An inert value: "module.name", noted once in the file however often the pickle names it. */
static gmem_status gmem__pickle_intern_foreign(gmem__pickle *p, const char *name, int64_t bytes, uint32_t *index) {
    const int32_t found = gmem__names_find(&p->foreign_names, (const unsigned char *)name, bytes);
    if (found >= 0) {
        *index = (uint32_t)found;
        return GMEM_OK;
    }
    if (p->foreign.count >= GMEM__PICKLE_MAX_FOREIGN) {
        return gmem__pickle_fail(p, GMEM_E_LIMIT, "the pickle names too many globals");
    }
    GMEM__TRY(gmem__pickle_charge(p, GMEM__PICKLE_NAME_COST));
    GMEM__TRY(gmem__pool_reserve(p, &p->foreign));
    const char *copy = gmem__file_text(p->file, name, bytes);
    if (!copy) return gmem__file_no_memory(p->file, p->error);
    if (!gmem__names_reserve(&p->foreign_names, (int64_t)p->foreign.count + 1)) {
        return gmem__pickle_fail(p, GMEM_E_MEMORY, "out of memory");
    }
    GMEM__TRY(gmem__file_add_foreign(p->file, copy, p->error));
    gmem__names_add(&p->foreign_names, (const unsigned char *)copy, bytes, (int32_t)p->foreign.count);
    *index = p->foreign.count;
    ((const char **)p->foreign.items)[p->foreign.count++] = copy;
    return GMEM_OK;
}

static gmem_status gmem__pickle_check_global(const gmem__pickle *p, const unsigned char *text, uint32_t bytes) {
    if (bytes > GMEM__PICKLE_MAX_GLOBAL) return gmem__pickle_fail(p, GMEM_E_LIMIT, "a global has an overlong name");
    if (bytes == 0 || memchr(text, 0, bytes)) {
        return gmem__pickle_fail(p, GMEM_E_NAME, "a global has an empty name or a NUL in it");
    }
    if (gmem__utf8_error((const char *)text, bytes) >= 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_UTF8, "a global's name is not UTF-8");
    }
    return GMEM_OK;
}

static gmem_status gmem__pickle_push_global(gmem__pickle *p, const unsigned char *module, uint32_t module_bytes,
                                            const unsigned char *name, uint32_t name_bytes) {
    char full[2 * GMEM__PICKLE_MAX_GLOBAL + 1];
    GMEM__TRY(gmem__pickle_check_global(p, module, module_bytes));
    GMEM__TRY(gmem__pickle_check_global(p, name, name_bytes));
    for (uint32_t i = 0; i < sizeof gmem__globals / sizeof gmem__globals[0]; i++) {
        const gmem__global *known = &gmem__globals[i];
        if (!gmem__pickle_same(module, module_bytes, known->module)) continue;
        if (!gmem__pickle_same(name, name_bytes, known->name)) continue;
        gmem__node node = gmem__pickle_make(p, known->kind);
        node.as.ref.index = known->kind == GMEM__KIND_DTYPE ? i : known->index;
        return gmem__pickle_push_node(p, node);
    }
    memcpy(full, module, module_bytes);
    full[module_bytes] = '.';
    memcpy(full + module_bytes + 1, name, name_bytes);
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_INERT);
    GMEM__TRY(gmem__pickle_intern_foreign(p, full, (int64_t)module_bytes + 1 + name_bytes, &node.as.ref.index));
    return gmem__pickle_push_node(p, node);
}

static gmem_status gmem__pickle_read_line(gmem__pickle *p, const unsigned char **line, uint32_t *bytes) {
    *line = p->bytes + p->next;
    const unsigned char *end = (const unsigned char *)memchr(*line, '\n', p->size - p->next);
    if (!end) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside a global's name");
    *bytes = (uint32_t)(end - *line);
    p->next += *bytes + 1;
    return GMEM_OK;
}

static gmem_status gmem__op_global(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const unsigned char *module, *name;
    uint32_t module_bytes = 0, name_bytes = 0;
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_read_line(p, &module, &module_bytes));
    GMEM__TRY(gmem__pickle_read_line(p, &name, &name_bytes));
    return gmem__pickle_push_global(p, module, module_bytes, name, name_bytes);
}

static gmem_status gmem__op_stack_global(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, 2));
    const gmem__node module = gmem__pickle_node(p, *gmem__pickle_top(p, 1));
    const gmem__node name = gmem__pickle_node(p, *gmem__pickle_top(p, 0));
    if (module.kind != GMEM__KIND_TEXT || name.kind != GMEM__KIND_TEXT) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a global's name is no string");
    }
    p->stack.count -= 2;
    return gmem__pickle_push_global(p, p->bytes + module.as.text.at, module.as.text.bytes, p->bytes + name.as.text.at,
                                    name.as.text.bytes);
}

/* storages --------------------------------------------------------------------------------------------------------- */

GMEM__FN int32_t gmem__pickle_find_storage(const gmem__pickle *p, const unsigned char *key, int64_t bytes) {
    return gmem__names_find(&p->storage_names, key, bytes);
}

static gmem_status gmem__pickle_integer(const gmem__pickle *p, gmem__handle value, int64_t *out) {
    const gmem__node node = gmem__pickle_node(p, value);
    if (node.kind == GMEM__KIND_LONG) return gmem__pickle_fail(p, GMEM_E_OVERFLOW, "an integer overflows");
    if (node.kind != GMEM__KIND_INTEGER)
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "no integer where one must be");
    *out = node.as.integer;
    return GMEM_OK;
}

/* Adds the storage, or finds the one that an earlier tensor named: torch never gives one key two types or sizes. */
static gmem_status gmem__pickle_intern_storage(gmem__pickle *p, const gmem__storage *storage, uint32_t *index) {
    const int32_t found = gmem__pickle_find_storage(p, storage->key, storage->key_bytes);
    if (found >= 0) {
        const gmem__storage *known = gmem__pickle_storage(p, found);
        if (known->type != storage->type || known->numel != storage->numel) {
            return gmem__pickle_fail(p, GMEM_E_STORAGE, "one storage is given two types or sizes");
        }
        *index = (uint32_t)found;
        return GMEM_OK;
    }
    GMEM__TRY(gmem__pickle_charge(p, GMEM__PICKLE_NAME_COST));
    GMEM__TRY(gmem__pool_reserve(p, &p->storages));
    if (!gmem__names_reserve(&p->storage_names, (int64_t)p->storages.count + 1)) {
        return gmem__pickle_fail(p, GMEM_E_MEMORY, "out of memory");
    }
    gmem__names_add(&p->storage_names, storage->key, storage->key_bytes, (int32_t)p->storages.count);
    *index = p->storages.count;
    ((gmem__storage *)p->storages.items)[p->storages.count++] = *storage;
    return GMEM_OK;
}

/* (key of the view, first element, elements): what torch before 0.4 wrote for a storage inside another. */
static gmem_status gmem__pickle_view(const gmem__pickle *p, gmem__handle view, int64_t numel, int64_t *offset,
                                     int64_t *count) {
    gmem__handle items[3];
    int64_t end;
    *offset = 0;
    *count = numel;
    if (view == GMEM__HANDLE_NONE) return GMEM_OK;
    const gmem__node node = gmem__pickle_node(p, view);
    if (gmem__pickle_items(p, &node, items, 3) != 3) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a storage's view is no tuple of three");
    }
    GMEM__TRY(gmem__pickle_integer(p, items[1], offset));
    GMEM__TRY(gmem__pickle_integer(p, items[2], count));
    if (gmem__add(*offset, *count, &end) && end <= numel) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_STORAGE, "a storage's view leaves the storage");
}

/* ("storage", class, key, location, elements) and, in legacy files, a view. */
static gmem_status gmem__op_persistent(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    gmem__handle items[6];
    gmem__storage storage;
    int64_t bytes, view_offset, view_count;
    const int expected = p->legacy ? 6 : 5;
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, 1));
    const gmem__node id = gmem__pickle_node(p, *gmem__pickle_top(p, 0));
    const int count = gmem__pickle_items(p, &id, items, 6);
    if (p->legacy && count == 4 && gmem__pickle_text_is(p, items[0], "module") &&
        gmem__pickle_kind(p, items[1]) == GMEM__KIND_INERT) { /* a module's class with its source */
        *gmem__pickle_top(p, 0) = items[1];
        return GMEM_OK;
    }
    if (count != expected || !gmem__pickle_text_is(p, items[0], "storage") ||
        gmem__pickle_kind(p, items[2]) != GMEM__KIND_TEXT || gmem__pickle_kind(p, items[3]) != GMEM__KIND_TEXT) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a persistent id that is no storage's");
    }
    const gmem__node type = gmem__pickle_node(p, items[1]), key = gmem__pickle_node(p, items[2]);
    if (type.kind == GMEM__KIND_INERT) { /* a class of elements that gmem does not know */
        *gmem__pickle_top(p, 0) = items[1];
        return GMEM_OK;
    }
    if (type.kind != GMEM__KIND_STORAGE_CLASS) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a storage's class is no storage class");
    }
    memset(&storage, 0, sizeof storage);
    storage.key = p->bytes + key.as.text.at;
    storage.key_bytes = key.as.text.bytes;
    storage.at = p->at;
    storage.type = (gmem_type)type.as.ref.index;
    GMEM__TRY(gmem__pickle_integer(p, items[4], &storage.numel));
    if (!gmem__mul(storage.numel, (int64_t)gmem_type_bytes(storage.type), &bytes)) {
        return gmem__pickle_fail(p, GMEM_E_STORAGE, "a storage's size is negative or overflows");
    }
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_STORAGE);
    node.as.ref.view = p->legacy ? items[5] : (gmem__handle)GMEM__HANDLE_NONE;
    GMEM__TRY(gmem__pickle_view(p, node.as.ref.view, storage.numel, &view_offset, &view_count));
    GMEM__TRY(gmem__pickle_intern_storage(p, &storage, &node.as.ref.index));
    p->stack.count--;
    return gmem__pickle_push_node(p, node);
}

/* tensors ---------------------------------------------------------------------------------------------------------- */

/* A tensor's arguments: storage, offset, size, stride. */
typedef struct gmem__view {
    gmem_tensor tensor;
    uint32_t storage;
    int64_t first; /* element of the storage */
} gmem__view;

/* The integers of a tuple; `inert` receives an inert value among them. */
static gmem_status gmem__pickle_integers(const gmem__pickle *p, gmem__handle tuple, int64_t *out, int *count,
                                         gmem__handle *inert) {
    gmem__handle items[GMEM_MAX_RANK];
    const gmem__node node = gmem__pickle_node(p, tuple);
    *count = gmem__pickle_items(p, &node, items, GMEM_MAX_RANK);
    if (*count < 0) return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a tensor's size is no tuple");
    if (*count > GMEM_MAX_RANK) return gmem__pickle_fail(p, GMEM_E_TENSOR, "a tensor of more than 8 dimensions");
    for (int i = 0; i < *count; i++) {
        if (gmem__pickle_kind(p, items[i]) == GMEM__KIND_INERT) {
            *inert = items[i];
            out[i] = 0;
        } else {
            GMEM__TRY(gmem__pickle_integer(p, items[i], &out[i]));
        }
    }
    return GMEM_OK;
}

/* Every element must lie in the storage, and a stride of zero must not make more elements than it has. */
static gmem_status gmem__pickle_check_view(const gmem__pickle *p, const gmem__view *view, int64_t offset,
                                           int64_t numel) {
    const gmem_tensor *tensor = &view->tensor;
    int64_t count = 1, last = offset;
    int empty = 0, fits = offset >= 0 && offset <= numel;
    for (int i = 0; i < tensor->rank; i++) {
        empty |= tensor->shape[i] == 0;
        fits &= tensor->shape[i] >= 0 && tensor->stride[i] >= 0;
    }
    for (int i = 0; i < tensor->rank && fits && !empty; i++) {
        int64_t span = 0;
        fits = gmem__mul(count, tensor->shape[i], &count) &&
               gmem__mul(tensor->shape[i] - 1, tensor->stride[i], &span) && gmem__add(last, span, &last);
    }
    if (fits && (empty || (count <= numel && last < numel))) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_TENSOR, "a tensor does not fit its storage");
}

/* Decodes and checks. Where an inert value stands for a part, `inert` receives it and nothing else counts. */
static gmem_status gmem__pickle_decode_tensor(const gmem__pickle *p, const gmem__node *arguments, gmem__view *out,
                                              gmem__handle *inert) {
    gmem__handle items[4];
    int64_t offset = 0, view_offset, view_count;
    int stride_count = 0;
    memset(out, 0, sizeof *out);
    *inert = GMEM__HANDLE_NONE;
    (void)gmem__pickle_items(p, arguments, items, 4); /* four at least, by gmem__call_arguments */
    for (int i = 0; i < 4; i++) {
        if (gmem__pickle_kind(p, items[i]) != GMEM__KIND_INERT) continue;
        *inert = items[i];
        return GMEM_OK;
    }
    const gmem__node storage_node = gmem__pickle_node(p, items[0]);
    if (storage_node.kind != GMEM__KIND_STORAGE) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a tensor's storage is no storage");
    }
    GMEM__TRY(gmem__pickle_integer(p, items[1], &offset));
    GMEM__TRY(gmem__pickle_integers(p, items[2], out->tensor.shape, &out->tensor.rank, inert));
    GMEM__TRY(gmem__pickle_integers(p, items[3], out->tensor.stride, &stride_count, inert));
    if (*inert != GMEM__HANDLE_NONE) return GMEM_OK;
    if (stride_count != out->tensor.rank) {
        return gmem__pickle_fail(p, GMEM_E_TENSOR, "a tensor has more or fewer strides than dimensions");
    }
    const gmem__storage *storage = gmem__pickle_storage(p, storage_node.as.ref.index);
    GMEM__TRY(gmem__pickle_view(p, storage_node.as.ref.view, storage->numel, &view_offset, &view_count));
    GMEM__TRY(gmem__pickle_check_view(p, out, offset, view_count));
    out->tensor.type = storage->type;
    out->storage = storage_node.as.ref.index;
    out->first = view_offset + offset;
    return GMEM_OK;
}

GMEM__FN void gmem__pickle_tensor(const gmem__pickle *p, const gmem__node *node, gmem_tensor *out) {
    gmem__view view;
    gmem__handle inert;
    gmem__node arguments = *node;
    arguments.kind = GMEM__KIND_TUPLE;
    (void)gmem__pickle_decode_tensor(p, &arguments, &view, &inert); /* it succeeded when the node was made */
    const gmem__storage *storage = gmem__pickle_storage(p, view.storage);
    *out = view.tensor;
    if (storage->data) out->data = storage->data + view.first * (int64_t)gmem_type_bytes(view.tensor.type);
}

/* calls that are data ---------------------------------------------------------------------------------------------- */

/* Replaces the function and its arguments on the stack by the result. */
static gmem_status gmem__pickle_return(gmem__pickle *p, gmem__handle result) {
    p->stack.count -= 2;
    return gmem__pickle_push(p, result);
}

static gmem_status gmem__pickle_return_node(gmem__pickle *p, gmem__node node) {
    gmem__handle result;
    GMEM__TRY(gmem__pickle_add_node(p, node, &result));
    return gmem__pickle_return(p, result);
}

static gmem_status gmem__call_tensor(gmem__pickle *p, const gmem__node *arguments) {
    gmem__view view;
    gmem__handle inert;
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_TENSOR);
    GMEM__TRY(gmem__pickle_decode_tensor(p, arguments, &view, &inert));
    if (inert != GMEM__HANDLE_NONE) return gmem__pickle_return(p, inert);
    node.as.list = arguments->as.list;
    return gmem__pickle_return_node(p, node);
}

static gmem_status gmem__call_device(gmem__pickle *p, const gmem__node *arguments, const gmem__handle *items,
                                     int count) {
    int64_t number = 0;
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_DEVICE);
    const gmem__node type = gmem__pickle_node(p, items[0]);
    if (type.kind != GMEM__KIND_TEXT || type.as.text.bytes > 32) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a device's type is no short string");
    }
    if (count == 2) GMEM__TRY(gmem__pickle_integer(p, items[1], &number));
    node.as.list = arguments->as.list;
    return gmem__pickle_return_node(p, node);
}

/* How many arguments each function takes. */
static const struct { int least, most; } gmem__call_arguments[] = {{0, 0}, {1, 1}, {1, 2}, {4, 4}, {6, 7}, {3, 3}};

static gmem_status gmem__pickle_call(gmem__pickle *p, uint32_t function, const gmem__node *arguments) {
    gmem__handle items[7];
    const int count = gmem__pickle_items(p, arguments, items, 7);
    if (count < gmem__call_arguments[function].least || count > gmem__call_arguments[function].most) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a function is given the wrong number of arguments");
    }
    if (function == GMEM__CALL_ORDERED_DICT) {
        return gmem__pickle_return_node(p, gmem__pickle_make(p, GMEM__KIND_ORDERED_DICT));
    }
    if (function == GMEM__CALL_TENSOR || function == GMEM__CALL_TENSOR_V2) return gmem__call_tensor(p, arguments);
    if (function == GMEM__CALL_DEVICE) return gmem__call_device(p, arguments, items, count);
    /* what remains gives its argument back: a size is a tuple, a parameter is its tensor */
    const gmem__kind kind = gmem__pickle_kind(p, items[0]);
    const gmem__kind wanted = function == GMEM__CALL_SIZE ? GMEM__KIND_TUPLE : GMEM__KIND_TENSOR;
    if (kind == wanted || kind == GMEM__KIND_INERT) return gmem__pickle_return(p, items[0]);
    return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a size is no tuple or a parameter no tensor");
}

static gmem_status gmem__op_reduce(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, 2));
    const gmem__handle value = *gmem__pickle_top(p, 1);
    const gmem__node function = gmem__pickle_node(p, value);
    const gmem__node arguments = gmem__pickle_node(p, *gmem__pickle_top(p, 0));
    if (function.kind == GMEM__KIND_INERT) return gmem__pickle_return(p, value);
    if (function.kind == GMEM__KIND_FUNCTION) return gmem__pickle_call(p, function.as.ref.index, &arguments);
    return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "what is called is no function");
}

/* NEWOBJ, NEWOBJ_EX and BUILD: `detail` values are applied to an inert one below them, which swallows them. The state
 * that BUILD gives to an OrderedDict is its attributes (_metadata), not its items. */
static gmem_status gmem__op_swallow(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, op->detail + 1));
    const gmem__kind kind = gmem__pickle_kind(p, *gmem__pickle_top(p, op->detail));
    if (kind != GMEM__KIND_INERT && kind != (gmem__kind)op->kind) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "an object is built of what is no class");
    }
    p->stack.count -= op->detail;
    return GMEM_OK;
}

/* the machine ------------------------------------------------------------------------------------------------------ */

enum { GMEM__PICKLE_PROTO = 0x80, GMEM__PICKLE_STOP = '.' };

/* code, protocol that brought it, bytes of argument, handler, detail, kind. PROTO and STOP are the machine's own. What
 * is absent is refused: text forms, POP, DUP, INST, OBJ, EXT, and what came after protocol 4. */
static const gmem__opcode gmem__opcodes[] = {
    {'(', 2, 0, gmem__op_mark, 0, 0},
    {')', 2, 0, gmem__op_constant, GMEM__HANDLE_EMPTY_TUPLE, 0},
    {'B', 3, 4, gmem__op_text, 0, GMEM__KIND_BYTES},
    {'C', 3, 1, gmem__op_text, 0, GMEM__KIND_BYTES},
    {'G', 2, 8, gmem__op_float, 0, 0},
    {'J', 2, 4, gmem__op_signed, 0, 0},
    {'K', 2, 1, gmem__op_unsigned, 0, 0},
    {'M', 2, 2, gmem__op_unsigned, 0, 0},
    {'N', 2, 0, gmem__op_constant, GMEM__HANDLE_NONE, 0},
    {'Q', 2, 0, gmem__op_persistent, 0, 0},
    {'R', 2, 0, gmem__op_reduce, 0, 0},
    {'X', 2, 4, gmem__op_text, 0, GMEM__KIND_TEXT},
    {']', 2, 0, gmem__op_empty, 0, GMEM__KIND_LIST},
    {'a', 2, 0, gmem__op_fill, 1, GMEM__KIND_LIST},
    {'b', 2, 0, gmem__op_swallow, 1, GMEM__KIND_ORDERED_DICT},
    {'c', 2, 0, gmem__op_global, 0, 0},
    {'e', 2, 0, gmem__op_fill, 0, GMEM__KIND_LIST},
    {'h', 2, 1, gmem__op_get, 0, 0},
    {'j', 2, 4, gmem__op_get, 0, 0},
    {'q', 2, 1, gmem__op_put, 0, 0},
    {'r', 2, 4, gmem__op_put, 0, 0},
    {'s', 2, 0, gmem__op_fill, 2, GMEM__KIND_DICT},
    {'t', 2, 0, gmem__op_gather, 0, GMEM__KIND_TUPLE},
    {'u', 2, 0, gmem__op_fill, 0, GMEM__KIND_DICT},
    {'}', 2, 0, gmem__op_empty, 0, GMEM__KIND_DICT},
    {0x81, 2, 0, gmem__op_swallow, 1, GMEM__KIND_INERT}, /* NEWOBJ */
    {0x85, 2, 0, gmem__op_gather, 1, GMEM__KIND_TUPLE},
    {0x86, 2, 0, gmem__op_gather, 2, GMEM__KIND_TUPLE},
    {0x87, 2, 0, gmem__op_gather, 3, GMEM__KIND_TUPLE},
    {0x88, 2, 0, gmem__op_constant, GMEM__HANDLE_TRUE, 0},
    {0x89, 2, 0, gmem__op_constant, GMEM__HANDLE_FALSE, 0},
    {0x8a, 2, 1, gmem__op_long, 0, 0},
    {0x8b, 2, 0, gmem__op_huge, 0, 0}, /* LONG4 */
    {0x8c, 4, 1, gmem__op_text, 0, GMEM__KIND_TEXT},
    {0x8d, 4, 0, gmem__op_huge, 0, 0}, /* BINUNICODE8 */
    {0x8e, 4, 0, gmem__op_huge, 0, 0}, /* BINBYTES8 */
    {0x8f, 4, 0, gmem__op_empty, 0, GMEM__KIND_SET},
    {0x90, 4, 0, gmem__op_fill, 0, GMEM__KIND_SET},
    {0x91, 4, 0, gmem__op_gather, 0, GMEM__KIND_SET},    /* FROZENSET */
    {0x92, 4, 0, gmem__op_swallow, 2, GMEM__KIND_INERT}, /* NEWOBJ_EX */
    {0x93, 4, 0, gmem__op_stack_global, 0, 0},
    {0x94, 4, 0, gmem__op_put, 0, 0}, /* MEMOIZE */
    {0x95, 4, 8, gmem__op_frame, 0, 0},
};

/* The opcode of that byte in this pickle's protocol, or NULL. */
static const gmem__opcode *gmem__pickle_opcode(const gmem__pickle *p, unsigned char code) {
    int low = 0, high = (int)(sizeof gmem__opcodes / sizeof gmem__opcodes[0]);
    while (low < high) {
        const int middle = (low + high) / 2;
        if (gmem__opcodes[middle].code < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const int known = low < (int)(sizeof gmem__opcodes / sizeof gmem__opcodes[0]) && gmem__opcodes[low].code == code &&
                      gmem__opcodes[low].protocol <= p->protocol;
    return known ? &gmem__opcodes[low] : NULL;
}

static gmem_status gmem__pickle_begin(gmem__pickle *p) {
    static const gmem__kind constants[GMEM__HANDLE_FIRST] = {GMEM__KIND_NONE, GMEM__KIND_FALSE, GMEM__KIND_TRUE,
                                                             GMEM__KIND_TUPLE};
    gmem__handle value;
    if (p->size < 2) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends before its protocol");
    if (p->bytes[0] != GMEM__PICKLE_PROTO || p->bytes[1] < 2 || p->bytes[1] > 4) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_PROTOCOL, "no pickle of protocol 2, 3 or 4");
    }
    p->protocol = p->bytes[1];
    p->next = 2;
    for (int i = 0; i < GMEM__HANDLE_FIRST; i++)
        GMEM__TRY(gmem__pickle_add_node(p, gmem__pickle_make(p, constants[i]), &value));
    GMEM__TRY(gmem__pool_reserve(p, &p->cells));
    p->cells.count = 1; /* cell 0 means none */
    return GMEM_OK;
}

static gmem_status gmem__pickle_step(gmem__pickle *p) {
    const unsigned char code = p->bytes[p->next++];
    const gmem__opcode *op = gmem__pickle_opcode(p, code);
    if (!op) {
        return gmem__fail_at(p->error, GMEM_E_PICKLE_OPCODE, p->file->path, p->start + p->at,
                             "opcode 0x%02x is none that torch.save writes", (unsigned)code);
    }
    if (op->argument > p->size - p->next) {
        return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside an opcode");
    }
    const unsigned char *argument = p->bytes + p->next;
    p->next += op->argument;
    return op->run(p, op, argument);
}

static gmem_status gmem__pickle_execute(gmem__pickle *p) {
    GMEM__TRY(gmem__pickle_begin(p));
    for (;;) {
        p->at = p->next;
        if (p->next >= p->size) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends before its STOP");
        if (p->bytes[p->next] == GMEM__PICKLE_STOP) break;
        GMEM__TRY(gmem__pickle_step(p));
    }
    p->next++;
    if (p->stack.count != 1 || p->marks.count != 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle stops with more or less than one value");
    }
    p->root = *gmem__pickle_top(p, 0);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__pickle_run(gmem_file *file, int64_t start, int64_t end, int legacy, gmem__pickle *out,
                                      gmem_error *error) {
    gmem__pickle pickle, *p = &pickle;
    memset(p, 0, sizeof *p);
    p->file = file;
    p->error = error;
    p->bytes = file->bytes.data + start;
    p->start = start;
    p->size = (uint32_t)gmem__min(end - start, INT32_MAX); /* a longer pickle, 2 GiB of names, ends as truncated */
    p->legacy = legacy;
    p->nodes.bytes = sizeof(gmem__node);
    p->cells.bytes = sizeof(gmem__cell);
    p->stack.bytes = p->marks.bytes = p->memo.bytes = sizeof(uint32_t);
    p->storages.bytes = sizeof(gmem__storage);
    p->foreign.bytes = sizeof(const char *);
    p->storage_names.context = p->foreign_names.context = file->context;
    const gmem_status status = gmem__pickle_execute(p);
    p->error = NULL;
    if (status == GMEM_OK) *out = pickle;
    if (status != GMEM_OK) gmem__pickle_free(p);
    return status;
}

GMEM__FN void gmem__pickle_free(gmem__pickle *p) {
    gmem__pool *const pools[] = {&p->nodes, &p->cells, &p->stack, &p->marks, &p->memo, &p->storages, &p->foreign};
    for (size_t i = 0; i < sizeof pools / sizeof pools[0]; i++)
        gmem__pool_free(p, pools[i]);
    gmem__names_free(&p->storage_names);
    gmem__names_free(&p->foreign_names);
    gmem__pickle_release(p, p->held);
}
