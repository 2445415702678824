/* Checkpoints of torch.save, zip and legacy: where the storages lie, and the pickle's object flattened into entries.
 * Tensors are views into the file at whatever alignment: torch aligns storages to 64 bytes, but every reader of
 * elements is safe without, so nothing is ever copied. */
#include "pickle.h"
#include "zip.h"

#include <stdio.h>

enum {
    GMEM__TORCH_MAX_DEPTH = 128,   /* dictionaries in dictionaries */
    GMEM__TORCH_MAX_KEY = 4096,    /* bytes of a flattened key */
    GMEM__TORCH_MAX_SHARING = 8,   /* visits per byte of pickle: shared containers are listed each time */
    GMEM__TORCH_MIN_VISITS = 65536 /* whatever the size */
};

/* flattening ------------------------------------------------------------------------------------------------------- */

/* A container whose items are being listed. */
typedef struct gmem__frame {
    gmem__handle container;
    uint32_t cell;     /* the next item, a dictionary's key */
    int64_t index;     /* of that item */
    int32_t key_bytes; /* of the container's own key */
} gmem__frame;

typedef struct gmem__flatten {
    gmem_file *file;
    gmem__pickle *pickle;
    gmem_error *error;
    int64_t visits;
    int depth;
    int32_t key_bytes;
    gmem__frame frames[GMEM__TORCH_MAX_DEPTH];
    char key[GMEM__TORCH_MAX_KEY + 1];
} gmem__flatten;

static gmem_status gmem__flatten_fail(const gmem__flatten *f, gmem_status code, const gmem__node *node,
                                      const char *what) {
    gmem__quoted quoted;
    return gmem__fail_at(f->error, code, f->file->path, f->pickle->start + node->at, "%s (key %s)", what,
                         gmem__quote(&quoted, f->key));
}

static int gmem__is_container(const gmem__node *node) {
    return node->kind >= GMEM__KIND_TUPLE && node->kind <= GMEM__KIND_ORDERED_DICT;
}

static int gmem__is_dict(const gmem__node *node) {
    return node->kind == GMEM__KIND_DICT || node->kind == GMEM__KIND_ORDERED_DICT;
}

/* The mark that a container is on the path from the root: meeting it again is a cycle. */
static void gmem__flatten_mark(const gmem__flatten *f, gmem__handle container, uint8_t on_path) {
    ((gmem__node *)f->pickle->nodes.items)[container].on_path = on_path;
}

static gmem_status gmem__flatten_enter(gmem__flatten *f, gmem__handle container, const gmem__node *node) {
    if (node->on_path) return gmem__flatten_fail(f, GMEM_E_PICKLE_CYCLE, node, "a container contains itself");
    if (f->depth == GMEM__TORCH_MAX_DEPTH) {
        return gmem__flatten_fail(f, GMEM_E_LIMIT, node, "containers are nested too deeply");
    }
    gmem__frame *frame = &f->frames[f->depth++];
    frame->container = container;
    frame->cell = node->as.list.first;
    frame->index = 0;
    frame->key_bytes = f->key_bytes;
    gmem__flatten_mark(f, container, 1);
    return GMEM_OK;
}

/* Extends the frame's key by ".name". */
static gmem_status gmem__flatten_name(gmem__flatten *f, const gmem__frame *frame, const gmem__node *node,
                                      const char *name, int64_t bytes) {
    const int32_t dot = f->depth > 1;
    if (memchr(name, 0, (size_t)bytes)) return gmem__flatten_fail(f, GMEM_E_NAME, node, "a key has a NUL in it");
    if (bytes > GMEM__TORCH_MAX_KEY - frame->key_bytes - dot) {
        return gmem__flatten_fail(f, GMEM_E_LIMIT, node, "a key is too long");
    }
    if (dot) f->key[frame->key_bytes] = '.';
    memcpy(f->key + frame->key_bytes + dot, name, (size_t)bytes);
    f->key_bytes = frame->key_bytes + dot + (int32_t)bytes;
    f->key[f->key_bytes] = 0;
    return GMEM_OK;
}

static gmem_status gmem__flatten_name_index(gmem__flatten *f, const gmem__frame *frame, const gmem__node *node,
                                            int64_t index) {
    char text[24];
    const int bytes = snprintf(text, sizeof text, "%lld", (long long)index);
    return gmem__flatten_name(f, frame, node, text, bytes);
}

/* A string key is the name; an integer key in decimal; what has no such name (a tuple, a number) goes by its place. */
static gmem_status gmem__flatten_name_key(gmem__flatten *f, const gmem__frame *frame, gmem__handle key) {
    const gmem__node node = gmem__pickle_node(f->pickle, key);
    if (node.kind == GMEM__KIND_TEXT) {
        return gmem__flatten_name(f, frame, &node, (const char *)f->pickle->bytes + node.as.text.at,
                                  node.as.text.bytes);
    }
    return gmem__flatten_name_index(f, frame, &node, node.kind == GMEM__KIND_INTEGER ? node.as.integer : frame->index);
}

static gmem_status gmem__flatten_add(gmem__flatten *f, gmem__entry *entry) {
    entry->key = gmem__file_text(f->file, f->key, f->key_bytes);
    if (!entry->key) return gmem__file_no_memory(f->file, f->error);
    entry->nested = f->depth ? f->frames[f->depth - 1].key_bytes : 0;
    return gmem__file_add(f->file, entry, f->error);
}

static gmem_status gmem__flatten_add_number(gmem__flatten *f, double number) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_NUMBER;
    entry.number = number;
    return gmem__flatten_add(f, &entry);
}

static gmem_status gmem__flatten_add_string(gmem__flatten *f, const gmem__node *node, const char *text, int64_t bytes) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_STRING;
    if (memchr(text, 0, (size_t)bytes)) return gmem__flatten_fail(f, GMEM_E_NAME, node, "a string has a NUL in it");
    entry.string = gmem__file_text(f->file, text, bytes);
    if (!entry.string) return gmem__file_no_memory(f->file, f->error);
    return gmem__flatten_add(f, &entry);
}

/* As Python prints them: "torch.float32", "cuda:0". */
static gmem_status gmem__flatten_add_dtype(gmem__flatten *f, const gmem__node *node) {
    char text[64];
    const int bytes = snprintf(text, sizeof text, "torch.%s", gmem__pickle_dtype_name(node));
    return gmem__flatten_add_string(f, node, text, bytes);
}

static gmem_status gmem__flatten_add_device(gmem__flatten *f, const gmem__node *node) {
    char text[64];
    const gmem__cell *first = gmem__pickle_cell(f->pickle, node->as.list.first);
    const gmem__node type = gmem__pickle_node(f->pickle, first->value);
    int bytes = (int)type.as.text.bytes; /* at most 32 */
    memcpy(text, f->pickle->bytes + type.as.text.at, type.as.text.bytes);
    if (first->next) {
        const gmem__node number = gmem__pickle_node(f->pickle, gmem__pickle_cell(f->pickle, first->next)->value);
        bytes += snprintf(text + bytes, sizeof text - (size_t)bytes, ":%lld", (long long)number.as.integer);
    }
    return gmem__flatten_add_string(f, node, text, bytes);
}

static gmem_status gmem__flatten_add_tensor(gmem__flatten *f, const gmem__node *node) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_TENSOR;
    gmem__pickle_tensor(f->pickle, node, &entry.tensor);
    return gmem__flatten_add(f, &entry);
}

static gmem_status gmem__flatten_add_foreign(gmem__flatten *f, const gmem__node *node) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_FOREIGN;
    entry.string = gmem__pickle_foreign(f->pickle, node);
    return gmem__flatten_add(f, &entry);
}

/* None, bytes, bare storages, classes and functions are no part of what a checkpoint says. */
static gmem_status gmem__flatten_leaf(gmem__flatten *f, const gmem__node *node) {
    switch ((gmem__kind)node->kind) {
    case GMEM__KIND_FALSE:
        return gmem__flatten_add_number(f, 0.0);
    case GMEM__KIND_TRUE:
        return gmem__flatten_add_number(f, 1.0);
    case GMEM__KIND_INTEGER:
    case GMEM__KIND_LONG:
    case GMEM__KIND_FLOAT:
        return gmem__flatten_add_number(f, gmem__pickle_number(f->pickle, node));
    case GMEM__KIND_TEXT:
        return gmem__flatten_add_string(f, node, (const char *)f->pickle->bytes + node->as.text.at,
                                        node->as.text.bytes);
    case GMEM__KIND_DTYPE:
        return gmem__flatten_add_dtype(f, node);
    case GMEM__KIND_DEVICE:
        return gmem__flatten_add_device(f, node);
    case GMEM__KIND_TENSOR:
        return gmem__flatten_add_tensor(f, node);
    case GMEM__KIND_INERT:
        return gmem__flatten_add_foreign(f, node);
    default:
        return GMEM_OK;
    }
}

static gmem_status gmem__flatten_visit(gmem__flatten *f, gmem__handle value) {
    const gmem__node node = gmem__pickle_node(f->pickle, value);
    const int64_t limit = gmem__max((int64_t)f->pickle->next * GMEM__TORCH_MAX_SHARING, GMEM__TORCH_MIN_VISITS);
    if (++f->visits > limit)
        return gmem__flatten_fail(f, GMEM_E_LIMIT, &node, "shared containers make too many entries");
    return gmem__is_container(&node) ? gmem__flatten_enter(f, value, &node) : gmem__flatten_leaf(f, &node);
}

/* Takes the innermost frame's next item, or leaves the frame. */
static gmem_status gmem__flatten_step(gmem__flatten *f) {
    gmem__frame *frame = &f->frames[f->depth - 1];
    if (frame->cell == 0) {
        gmem__flatten_mark(f, frame->container, 0);
        f->depth--;
        return GMEM_OK;
    }
    const gmem__node container = gmem__pickle_node(f->pickle, frame->container);
    const gmem__cell *item = gmem__pickle_cell(f->pickle, frame->cell);
    if (gmem__is_dict(&container)) {
        GMEM__TRY(gmem__flatten_name_key(f, frame, item->value));
        item = gmem__pickle_cell(f->pickle, item->next);
    } else {
        GMEM__TRY(gmem__flatten_name_index(f, frame, &container, frame->index));
    }
    frame->cell = item->next;
    frame->index++;
    return gmem__flatten_visit(f, item->value);
}

static gmem_status gmem__flatten_root(gmem_file *file, gmem__pickle *pickle, gmem_error *error) {
    gmem__flatten flatten, *f = &flatten;
    memset(f, 0, sizeof *f);
    f->file = file;
    f->pickle = pickle;
    f->error = error;
    GMEM__TRY(gmem__flatten_visit(f, pickle->root));
    while (f->depth > 0)
        GMEM__TRY(gmem__flatten_step(f));
    return GMEM_OK;
}

/* zip -------------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__torch_check_entries(const gmem_file *file, const gmem__zip *zip, gmem_error *error) {
    const gmem__zip_entry *script = gmem__zip_find(zip, "constants.pkl"), *order = gmem__zip_find(zip, "byteorder");
    if (script) {
        return gmem__fail_at(error, GMEM_E_FORMAT, file->path, script->header,
                             "a TorchScript archive: save the module's state_dict with torch.save instead");
    }
    GMEM__TRY(gmem__zip_require_stored(zip, error));
    if (!gmem__zip_find(zip, "data.pkl")) {
        return gmem__fail_at(error, GMEM_E_ZIP_MISSING, file->path, zip->size, "a zip without torch's data.pkl");
    }
    if (order && (order->size != 6 || memcmp(zip->bytes + order->data, "little", 6) != 0)) {
        return gmem__fail_at(error, GMEM_E_BYTEORDER, file->path, order->data, "its byte order is not little");
    }
    return GMEM_OK;
}

static gmem_status gmem__torch_zip_storages(const gmem_file *file, const gmem__zip *zip, gmem__pickle *pickle,
                                            gmem_error *error) {
    for (uint32_t i = 0; i < pickle->storages.count; i++) {
        gmem__storage *storage = gmem__pickle_storage(pickle, i);
        const int64_t bytes = storage->numel * (int64_t)gmem_type_bytes(storage->type);
        char name[128] = "data/";
        gmem__quoted quoted;
        const uint32_t fits = (uint32_t)(sizeof name - 6);
        memcpy(name + 5, storage->key, storage->key_bytes < fits ? storage->key_bytes : fits);
        const gmem__zip_entry *entry = storage->key_bytes < fits ? gmem__zip_find(zip, name) : NULL;
        if (!entry) {
            return gmem__fail_at(error, GMEM_E_STORAGE, file->path, pickle->start + storage->at,
                                 "the zip lacks the storage %s", gmem__quote(&quoted, name));
        }
        if (entry->size != bytes) {
            return gmem__fail_at(error, GMEM_E_STORAGE, file->path, entry->data,
                                 "the storage %s must have %lld bytes and has %lld", gmem__quote(&quoted, name),
                                 (long long)bytes, (long long)entry->size);
        }
        storage->data = zip->bytes + entry->data;
    }
    return GMEM_OK;
}

static gmem_status gmem__torch_read_zip(gmem_file *file, const gmem__zip *zip, gmem_error *error) {
    gmem__pickle pickle;
    GMEM__TRY(gmem__torch_check_entries(file, zip, error));
    const gmem__zip_entry *object = gmem__zip_find(zip, "data.pkl");
    const int64_t end = object->data + object->size;
    GMEM__TRY(gmem__pickle_run(file, object->data, end, 0, &pickle, error));
    gmem_status status = GMEM_OK;
    if (pickle.start + pickle.next != end) {
        status = gmem__fail_at(error, GMEM_E_PICKLE_TRAILING, file->path, pickle.start + pickle.next,
                               "bytes after the pickle's end");
    }
    if (status == GMEM_OK) status = gmem__torch_zip_storages(file, zip, &pickle, error);
    if (status == GMEM_OK) status = gmem__flatten_root(file, &pickle, error);
    gmem__pickle_free(&pickle);
    return status;
}

GMEM__FN gmem_status gmem__parse_torch_zip(gmem_file *file, gmem_error *error) {
    gmem__zip zip;
    GMEM__TRY(gmem__zip_open(file->context, file->path, &file->bytes, &zip, error));
    const int64_t held = gmem__zip_held(&zip);
    gmem_status status = GMEM_OK;
    if (gmem__file_may_hold(file, held)) {
        status = gmem__torch_read_zip(file, &zip, error);
        file->held -= held;
    } else {
        status = gmem__file_no_memory(file, error);
    }
    gmem__zip_close(&zip);
    return status;
}

/* legacy ----------------------------------------------------------------------------------------------------------- */

/* torch/serialization.py, _legacy_save: five pickles one after another, then the storages. */
typedef struct gmem__legacy {
    gmem_file *file;
    gmem_error *error;
    int64_t at; /* the file's next byte */
} gmem__legacy;

static gmem_status gmem__legacy_fail(const gmem__legacy *legacy, gmem_status code, int64_t offset, const char *what) {
    return gmem__fail_at(legacy->error, code, legacy->file->path, offset, "%s", what);
}

static gmem_status gmem__legacy_pickle(gmem__legacy *legacy, gmem__pickle *out) {
    GMEM__TRY(gmem__pickle_run(legacy->file, legacy->at, legacy->file->bytes.size, 1, out, legacy->error));
    legacy->at += out->next;
    return GMEM_OK;
}

static int gmem__legacy_is_magic(const gmem__pickle *pickle) {
    static const unsigned char magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
    const gmem__node root = gmem__pickle_node(pickle, pickle->root);
    return root.kind == GMEM__KIND_LONG && root.as.text.bytes == sizeof magic &&
           memcmp(pickle->bytes + root.as.text.at, magic, sizeof magic) == 0;
}

static int gmem__legacy_is_protocol(const gmem__pickle *pickle) {
    const gmem__node root = gmem__pickle_node(pickle, pickle->root);
    return root.kind == GMEM__KIND_INTEGER && root.as.integer == 1001;
}

static gmem_status gmem__legacy_check_system(const gmem__legacy *legacy, const gmem__pickle *pickle) {
    gmem__handle order;
    if (!gmem__pickle_lookup(pickle, pickle->root, "little_endian", &order)) {
        return gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, pickle->start, "no byte order in the legacy header");
    }
    const gmem__node node = gmem__pickle_node(pickle, order);
    if (node.kind == GMEM__KIND_TRUE) return GMEM_OK;
    return gmem__legacy_fail(legacy, GMEM_E_BYTEORDER, pickle->start, "its byte order is not little");
}

static gmem_status gmem__legacy_header(gmem__legacy *legacy) {
    for (int i = 0; i < 3; i++) {
        gmem__pickle pickle;
        gmem_status status = GMEM_OK;
        GMEM__TRY(gmem__legacy_pickle(legacy, &pickle));
        if (i == 0 && !gmem__legacy_is_magic(&pickle)) {
            status = gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, pickle.start, "not torch's magic number");
        } else if (i == 1 && !gmem__legacy_is_protocol(&pickle)) {
            status = gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, pickle.start, "not torch's protocol 1001");
        } else if (i == 2) {
            status = gmem__legacy_check_system(legacy, &pickle);
        }
        gmem__pickle_free(&pickle);
        GMEM__TRY(status);
    }
    return GMEM_OK;
}

/* One storage: its key is the next in the list; 8 bytes that count its elements, then these. */
static gmem_status gmem__legacy_storage(gmem__legacy *legacy, gmem__pickle *object, const gmem__pickle *keys,
                                        gmem__handle value) {
    const unsigned char *count = legacy->file->bytes.data + legacy->at;
    const gmem__node key = gmem__pickle_node(keys, value);
    const int64_t left = legacy->file->bytes.size - legacy->at;
    int32_t index = -1;
    uint64_t numel = 0;
    if (key.kind == GMEM__KIND_TEXT) {
        index = gmem__pickle_find_storage(object, keys->bytes + key.as.text.at, key.as.text.bytes);
    }
    if (index < 0) {
        return gmem__legacy_fail(legacy, GMEM_E_STORAGE, keys->start + key.at,
                                 "a storage that no tensor of a known class names");
    }
    gmem__storage *storage = gmem__pickle_storage(object, index);
    if (storage->data) {
        return gmem__legacy_fail(legacy, GMEM_E_STORAGE, keys->start + key.at, "a storage is listed twice");
    }
    if (left < 8) return gmem__legacy_fail(legacy, GMEM_E_TRUNCATED, legacy->at, "the file ends before a storage");
    for (int i = 8; i-- > 0;)
        numel = numel << 8 | count[i];
    if (numel != (uint64_t)storage->numel) {
        return gmem__legacy_fail(legacy, GMEM_E_STORAGE, legacy->at, "a storage's size is not what its tensors say");
    }
    const int64_t bytes = storage->numel * (int64_t)gmem_type_bytes(storage->type);
    if (bytes > left - 8) return gmem__legacy_fail(legacy, GMEM_E_TRUNCATED, legacy->at, "the file ends in a storage");
    storage->data = count + 8;
    legacy->at += 8 + bytes;
    return GMEM_OK;
}

static gmem_status gmem__legacy_storages(gmem__legacy *legacy, gmem__pickle *object, const gmem__pickle *keys) {
    const gmem__node list = gmem__pickle_node(keys, keys->root);
    if (list.kind != GMEM__KIND_LIST) {
        return gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, keys->start, "no list of storages");
    }
    for (uint32_t cell = list.as.list.first; cell; cell = gmem__pickle_cell(keys, cell)->next)
        GMEM__TRY(gmem__legacy_storage(legacy, object, keys, gmem__pickle_cell(keys, cell)->value));
    for (uint32_t i = 0; i < object->storages.count; i++) {
        const gmem__storage *storage = gmem__pickle_storage(object, i);
        if (!storage->data) {
            return gmem__legacy_fail(legacy, GMEM_E_STORAGE, object->start + storage->at, "a storage is not listed");
        }
    }
    if (legacy->at != legacy->file->bytes.size) {
        return gmem__legacy_fail(legacy, GMEM_E_PICKLE_TRAILING, legacy->at, "bytes after the last storage");
    }
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__parse_torch_legacy(gmem_file *file, gmem_error *error) {
    gmem__legacy legacy = {file, error, 0};
    gmem__pickle object, keys;
    GMEM__TRY(gmem__legacy_header(&legacy));
    GMEM__TRY(gmem__legacy_pickle(&legacy, &object));
    gmem_status status = gmem__legacy_pickle(&legacy, &keys);
    if (status == GMEM_OK) {
        status = gmem__legacy_storages(&legacy, &object, &keys);
        gmem__pickle_free(&keys);
    }
    if (status == GMEM_OK) status = gmem__flatten_root(file, &object, error);
    gmem__pickle_free(&object);
    return status;
}
