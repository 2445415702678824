/* Opening a checkpoint: which format it is, what the parser found, which dictionary of it loading uses. */
#include "file.h"

#include <stdio.h>

#define GMEM__FILE_MAX_COUNT   ((int64_t)1 << 30) /* of tensors, values, names: orders are int32 */
#define GMEM__FILE_MAX_FOREIGN 1000

/* memory of the file ---------------------------------------------------------------------------------------------- */

/* What a file makes its reader allocate stays in proportion to the file: no legitimate one comes near. */
GMEM__FN int gmem__file_may_hold(gmem_file *file, int64_t bytes) {
    int64_t limit = 7 << 17, scaled, held; /* a sixteenth and an eighth are left for the blocks' unused ends */
    if (gmem__mul(file->bytes.size, 15, &scaled)) limit += gmem__min(scaled, INT64_MAX / 2);
    if (!gmem__add(file->held, bytes, &held) || held > limit) {
        file->over_limit = 1;
        return 0;
    }
    file->held = held;
    return 1;
}

static void *gmem__file_take(gmem_file *file, int64_t count, size_t bytes, size_t align) {
    int64_t total;
    if (!gmem__mul(count, (int64_t)bytes, &total) || !gmem__file_may_hold(file, total)) return NULL;
    return gmem__blocks_take(file->context, &file->blocks, count, bytes, align);
}

GMEM__FN void *gmem__file_alloc(gmem_file *file, int64_t count, size_t bytes) {
    return gmem__file_take(file, count, bytes, 16);
}

GMEM__FN char *gmem__file_text(gmem_file *file, const char *text, int64_t bytes) {
    char *copy = (char *)gmem__file_take(file, bytes + 1, 1, 1);
    if (copy) memcpy(copy, text, (size_t)bytes);
    return copy;
}

GMEM__FN gmem_status gmem__file_no_memory(gmem_file *file, gmem_error *error) {
    if (file->over_limit)
        return gmem__fail_at(error, GMEM_E_LIMIT, file->path, -1,
                             "its keys and values want more than 16 times the file's %lld bytes of memory",
                             (long long)file->bytes.size);
    return gmem__fail_at(error, GMEM_E_MEMORY, file->path, -1, "no memory for the file's keys and values");
}

/* Room for one more in an array of `count` items, which moves: for a moment it is held twice. */
static gmem_status gmem__file_grow(gmem_file *file, void **items, int64_t count, int64_t *capacity, size_t bytes,
                                   gmem_error *error) {
    int64_t more = *capacity / 2 + 8;
    if (count < *capacity) return GMEM_OK;
    if (count >= GMEM__FILE_MAX_COUNT)
        return gmem__fail_at(error, GMEM_E_LIMIT, file->path, -1, "too many keys and values");
    if (!gmem__file_may_hold(file, (*capacity + more) * (int64_t)bytes)) return gmem__file_no_memory(file, error);
    void *larger = gmem__alloc_raw(file->context, *capacity + more, bytes);
    if (!larger) return gmem__file_no_memory(file, error);
    if (count) memcpy(larger, *items, (size_t)count * bytes);
    gmem__free(file->context, *items, *capacity, bytes);
    file->held -= *capacity * (int64_t)bytes;
    *items = larger;
    *capacity += more;
    return GMEM_OK;
}

/* the parsers' outputs -------------------------------------------------------------------------------------------- */

static gmem_status gmem__file_add_leaf(gmem_file *file, const gmem__entry *entry, gmem_error *error) {
    void *leaves = file->leaves;
    gmem_status status =
        gmem__file_grow(file, &leaves, file->leaf_count, &file->leaf_capacity, sizeof *file->leaves, error);
    file->leaves = (gmem__leaf *)leaves;
    if (status != GMEM_OK) return status;
    gmem__leaf *leaf = file->leaves + file->leaf_count++;
    leaf->tensor = entry->tensor;
    leaf->tensor.name = entry->key[0] ? entry->key : "tensor";
    leaf->nested = entry->nested;
    return GMEM_OK;
}

static gmem_status gmem__file_add_value(gmem_file *file, const gmem__entry *entry, gmem_error *error) {
    void *values = file->values;
    gmem_status status =
        gmem__file_grow(file, &values, file->value_count, &file->value_capacity, sizeof *file->values, error);
    file->values = (gmem__value *)values;
    if (status != GMEM_OK) return status;
    gmem__value *value = file->values + file->value_count++;
    value->key = entry->key;
    value->kind = (int32_t)entry->kind;
    value->nested = (int32_t)gmem__min(entry->nested, INT32_MAX);
    if (entry->kind == GMEM__ENTRY_NUMBER)
        value->as.number = entry->number;
    else
        value->as.string = entry->string;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__file_add(gmem_file *file, const gmem__entry *entry, gmem_error *error) {
    return entry->kind == GMEM__ENTRY_TENSOR ? gmem__file_add_leaf(file, entry, error)
                                             : gmem__file_add_value(file, entry, error);
}

GMEM__FN gmem_status gmem__file_add_foreign(gmem_file *file, const char *name, gmem_error *error) {
    for (int64_t i = 0; i < file->foreign_count; i++) {
        if (strcmp(file->foreign[i], name) == 0) return GMEM_OK;
    }
    if (file->foreign_count == GMEM__FILE_MAX_FOREIGN)
        return gmem__fail_at(error, GMEM_E_LIMIT, file->path, -1, "more than %d different foreign globals",
                             GMEM__FILE_MAX_FOREIGN);
    void *names = (void *)file->foreign;
    gmem_status status =
        gmem__file_grow(file, &names, file->foreign_count, &file->foreign_capacity, sizeof *file->foreign, error);
    file->foreign = (const char **)names;
    if (status == GMEM_OK) file->foreign[file->foreign_count++] = name;
    return status;
}

GMEM__FN gmem_status gmem__file_add_metadata(gmem_file *file, const char *key, const char *value, gmem_error *error) {
    void *pairs = (void *)file->metadata;
    gmem_status status = gmem__file_grow(file, &pairs, file->metadata_count, &file->metadata_capacity,
                                         2 * sizeof *file->metadata, error);
    file->metadata = (const char **)pairs;
    if (status != GMEM_OK) return status;
    file->metadata[2 * file->metadata_count] = key;
    file->metadata[2 * file->metadata_count + 1] = value;
    file->metadata_count++;
    return GMEM_OK;
}

/* sorting --------------------------------------------------------------------------------------------------------- */

typedef struct gmem__sorter {
    int32_t *order;
    int (*compare)(const void *user, int32_t a, int32_t b);
    const void *user;
} gmem__sorter;

/* Ties are broken by position, which makes the order stable. */
static int gmem__sort_less(const gmem__sorter *sorter, int64_t i, int64_t k) {
    int32_t a = sorter->order[i], b = sorter->order[k];
    int difference = sorter->compare(sorter->user, a, b);
    return difference < 0 || (difference == 0 && a < b);
}

static void gmem__sort_swap(const gmem__sorter *sorter, int64_t i, int64_t k) {
    int32_t kept = sorter->order[i];
    sorter->order[i] = sorter->order[k];
    sorter->order[k] = kept;
}

static void gmem__sort_sift(const gmem__sorter *sorter, int64_t root, int64_t count) {
    for (int64_t child = 2 * root + 1; child < count; root = child, child = 2 * root + 1) {
        if (child + 1 < count && gmem__sort_less(sorter, child, child + 1)) child++;
        if (!gmem__sort_less(sorter, root, child)) return;
        gmem__sort_swap(sorter, root, child);
    }
}

GMEM__FN void gmem__sort(int32_t *order, int64_t count, int (*compare)(const void *user, int32_t a, int32_t b),
                         const void *user) {
    gmem__sorter sorter = {order, compare, user};
    for (int64_t i = 0; i < count; i++)
        order[i] = (int32_t)i;
    for (int64_t i = count / 2 - 1; i >= 0; i--)
        gmem__sort_sift(&sorter, i, count);
    for (int64_t last = count - 1; last > 0; last--) {
        gmem__sort_swap(&sorter, 0, last);
        gmem__sort_sift(&sorter, 0, last);
    }
}

/* the selection --------------------------------------------------------------------------------------------------- */

/* The name of `key` within the dictionary (its dotted key, "" for the root), or NULL where it lies outside. What
 * stands at the dictionary's own key has the name "". */
static const char *gmem__name_within(const char *key, const char *dictionary) {
    size_t length = strlen(dictionary);
    if (length == 0) return key;
    if (strncmp(key, dictionary, length) != 0) return NULL;
    if (key[length] == 0) return key + length;
    return key[length] == '.' ? key + length + 1 : NULL;
}

/* Whether anything that loading could want lies in the dictionary: a tensor, or what should have been one. `nested`:
 * only in a real one, not below a name that merely has a dot in it. */
static int gmem__holds(const gmem_file *file, const char *dictionary, int nested) {
    int64_t least = nested ? (int64_t)strlen(dictionary) : 0;
    for (int64_t i = 0; i < file->leaf_count; i++) {
        const gmem__leaf *leaf = file->leaves + i;
        if (leaf->nested >= least && gmem__name_within(leaf->tensor.name, dictionary)) return 1;
    }
    for (int64_t i = 0; i < file->value_count; i++) {
        const gmem__value *value = file->values + i;
        const char *name = value->kind == GMEM__ENTRY_FOREIGN ? gmem__name_within(value->key, dictionary) : NULL;
        if (name && (value->nested >= least || !name[0])) return 1;
    }
    return 0;
}

static const char *const gmem__dictionaries[] = {"ema", "model", "state_dict", "network"};
#define GMEM__DICTIONARIES ((int)(sizeof gmem__dictionaries / sizeof gmem__dictionaries[0]))

/* safetensors know no dictionaries. Where every tensor's name begins with one of the four, as `gmem convert --key .`
 * writes them, the names stand for dictionaries all the same. */
static int gmem__stands_for_dictionaries(const gmem_file *file) {
    if (file->format != GMEM_SAFETENSORS) return 0;
    for (int64_t i = 0; i < file->leaf_count; i++) {
        int inside = 0;
        for (int k = 0; k < GMEM__DICTIONARIES; k++) {
            const char *name = gmem__name_within(file->leaves[i].tensor.name, gmem__dictionaries[k]);
            inside |= name && name[0];
        }
        if (!inside) return 0;
    }
    return 1;
}

static const char *gmem__default_key(const gmem_file *file) {
    int nested = !gmem__stands_for_dictionaries(file);
    for (int k = 0; k < GMEM__DICTIONARIES; k++) {
        if (gmem__holds(file, gmem__dictionaries[k], nested)) return gmem__dictionaries[k];
    }
    return "";
}

/* "ema, model and 3 more": the first parts of the keys, for a message. */
static void gmem__list_keys(const gmem_file *file, gmem__quoted *out) {
    size_t used = 0;
    int64_t total = file->leaf_count + file->value_count;
    const char *last = "";
    size_t last_length = 0;
    out->text[0] = 0;
    for (int64_t i = 0; i < total; i++) {
        const char *key = i < file->leaf_count ? file->leaves[i].tensor.name : file->values[i - file->leaf_count].key;
        size_t length = strcspn(key, ".");
        if (length == 0 || (length == last_length && memcmp(key, last, length) == 0)) continue;
        gmem__quoted quoted, part;
        snprintf(part.text, sizeof part.text, "%.*s", (int)gmem__min((int64_t)length, 60), key);
        int written =
            snprintf(out->text + used, sizeof out->text - used, used ? ", %s" : "%s", gmem__quote(&quoted, part.text));
        if (written < 0 || (size_t)written + 6 > sizeof out->text - used) {
            snprintf(out->text + used, sizeof out->text - used, "%s", ", ...");
            return;
        }
        used += (size_t)written;
        last = key;
        last_length = length;
    }
}

/* The caller's key, checked. "." and "" are the root. */
static gmem_status gmem__check_key(gmem_file *file, const char *key, gmem_error *error) {
    gmem__quoted quoted, there;
    if (strcmp(key, ".") == 0) key = "";
    if (!gmem__holds(file, key, 0)) {
        for (int64_t i = 0; i < file->value_count; i++) {
            if (gmem__name_within(file->values[i].key, key))
                return gmem__fail_at(error, GMEM_E_NO_TENSORS, file->path, -1, "%s holds no tensor",
                                     gmem__quote(&quoted, key));
        }
        gmem__list_keys(file, &there);
        return gmem__fail_at(error, GMEM_E_KEY, file->path, -1, "no key %s; there are: %s", gmem__quote(&quoted, key),
                             there.text);
    }
    file->key = gmem__file_text(file, key, (int64_t)strlen(key));
    return file->key ? GMEM_OK : gmem__file_no_memory(file, error);
}

/* Without what data-parallel and compiled models put before their names. */
static const char *gmem__strip_front(const char *name) {
    for (;;) {
        if (strncmp(name, "module.", 7) == 0)
            name += 7;
        else if (strncmp(name, "_orig_mod.", 10) == 0)
            name += 10;
        else
            return name;
    }
}

/* A compiled submodule has its mark in the middle. NULL: no memory. */
static const char *gmem__strip_name(gmem_file *file, const char *name) {
    static const char mark[] = "._orig_mod.";
    name = gmem__strip_front(name);
    if (!strstr(name, mark)) return name;
    char *copy = gmem__file_text(file, name, (int64_t)strlen(name));
    for (char *at = copy ? strstr(copy, mark) : NULL; at; at = strstr(at, mark)) {
        char *rest = at + sizeof mark - 2; /* its dot stays */
        memmove(at, rest, strlen(rest) + 1);
    }
    return copy;
}

static gmem_status gmem__select_leaves(gmem_file *file, gmem_error *error) {
    for (int64_t i = 0; i < file->leaf_count; i++)
        file->selected_count += gmem__name_within(file->leaves[i].tensor.name, file->key) != NULL;
    file->selected = (gmem_tensor *)gmem__file_alloc(file, file->selected_count, sizeof *file->selected);
    file->index = (int32_t *)gmem__file_alloc(file, file->selected_count, sizeof *file->index);
    if (!file->selected || !file->index) return gmem__file_no_memory(file, error);
    gmem_tensor *selected = file->selected;
    for (int64_t i = 0; i < file->leaf_count; i++) {
        const char *name = gmem__name_within(file->leaves[i].tensor.name, file->key);
        if (!name) continue;
        *selected = file->leaves[i].tensor;
        selected->name = name[0] ? gmem__strip_name(file, name) : "tensor"; /* "": the key names a tensor */
        if (!selected->name) return gmem__file_no_memory(file, error);
        selected++;
    }
    return GMEM_OK;
}

static int gmem__compare_selected(const void *user, int32_t a, int32_t b) {
    const gmem_tensor *selected = (const gmem_tensor *)user;
    return strcmp(selected[a].name, selected[b].name);
}

/* Names must tell tensors apart, after the prefixes are gone too. */
static gmem_status gmem__index_names(gmem_file *file, gmem_error *error) {
    gmem__quoted quoted;
    gmem__sort(file->index, file->selected_count, gmem__compare_selected, file->selected);
    for (int64_t i = 1; i < file->selected_count; i++) {
        if (gmem__compare_selected(file->selected, file->index[i - 1], file->index[i]) == 0)
            return gmem__fail_at(error, GMEM_E_NAME, file->path, -1, "two tensors have the name %s",
                                 gmem__quote(&quoted, file->selected[file->index[i]].name));
    }
    return GMEM_OK;
}

/* The dictionary that loading uses is, or holds nothing but, what the file's own code would have to build. */
static gmem_status gmem__fail_inert(const gmem_file *file, gmem_error *error) {
    gmem__quoted key, culprit;
    const char *global = "";
    for (int64_t i = 0; i < file->value_count && !global[0]; i++) {
        const gmem__value *value = file->values + i;
        if (value->kind == GMEM__ENTRY_FOREIGN && gmem__name_within(value->key, file->key)) global = value->as.string;
    }
    return gmem__fail_at(error, GMEM_E_FOREIGN, file->path, -1,
                         "%s: only the file's own code could build it (%s), and none is run; choose another key",
                         gmem__quote(&key, file->key), gmem__quote(&culprit, global));
}

static gmem_status gmem__fail_empty(const gmem_file *file, gmem_error *error) {
    gmem__quoted culprit;
    if (file->foreign_count == 0) return gmem__fail_at(error, GMEM_E_NO_TENSORS, file->path, -1, "it holds no tensor");
    return gmem__fail_at(error, GMEM_E_NO_TENSORS, file->path, -1,
                         "it holds no tensor, only what the file's own code would have to build (%s), and none is run",
                         gmem__quote(&culprit, file->foreign[0]));
}

static gmem_status gmem__select(gmem_file *file, const char *key, gmem_error *error) {
    if (file->leaf_count == 0) return gmem__fail_empty(file, error);
    if (key)
        GMEM__TRY(gmem__check_key(file, key, error));
    else
        file->key = gmem__default_key(file);
    GMEM__TRY(gmem__select_leaves(file, error));
    if (file->selected_count == 0) return gmem__fail_inert(file, error);
    return gmem__index_names(file, error);
}

/* opening --------------------------------------------------------------------------------------------------------- */

/* The contents decide, and one parser it is: nothing is tried a second time as something else. A safetensors header
 * may begin with a pickle's first byte, so its '{' is looked at before. */
static gmem_status gmem__detect(gmem_file *file, gmem_error *error) {
    const unsigned char *data = file->bytes.data;
    int64_t size = file->bytes.size;
    if (size < 8)
        return gmem__fail_at(error, GMEM_E_TRUNCATED, file->path, size, "the file ends too early: %lld bytes in all",
                             (long long)size);
    int brace = size > 8 && data[8] == '{';
    int small = (data[4] | data[5] | data[6] | data[7]) == 0 && data[3] < 6; /* as the length of a header */
    if (memcmp(data, "PK\3\4", 4) == 0 || memcmp(data, "PK\5\6", 4) == 0)
        file->format = GMEM_TORCH_ZIP;
    else if (data[0] == 0x80 && !(brace && small))
        file->format = GMEM_TORCH_LEGACY;
    else if (brace || small)
        file->format = GMEM_SAFETENSORS;
    else
        return gmem__fail_at(error, GMEM_E_FORMAT, file->path, 0, "neither a torch checkpoint nor safetensors");
    return GMEM_OK;
}

static gmem_status gmem__parse(gmem_file *file, gmem_error *error) {
    switch (file->format) {
    case GMEM_TORCH_ZIP:
        return gmem__parse_torch_zip(file, error);
    case GMEM_TORCH_LEGACY:
        return gmem__parse_torch_legacy(file, error);
    default:
        return gmem__parse_safetensors(file, error);
    }
}

/* Either way of opening: `bytes` belongs to the file from here on. */
static void gmem__log_opened(const gmem_file *file) {
    gmem__quoted path, key;
    gmem__log(file->context, "%s: %lld bytes, %s; %lld tensors%s%s", gmem__quote(&path, file->path),
              (long long)file->bytes.size, file->bytes.mapped ? "mapped" : "in memory", (long long)file->selected_count,
              file->key[0] ? " in " : "", gmem__quote(&key, file->key));
}

static gmem_status gmem__file_create(gmem_context *context, const char *path, gmem__bytes bytes, const char *key,
                                     gmem_file **out, gmem_error *error) {
    gmem_file *file = (gmem_file *)gmem__alloc(context, 1, sizeof *file);
    if (!file) {
        gmem__bytes_close(context, &bytes);
        return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory to open the file");
    }
    file->context = context;
    file->bytes = bytes;
    file->held = bytes.owned ? bytes.size : 0;
    file->key = "";
    file->path = (char *)gmem__blocks_take(context, &file->blocks, (int64_t)strlen(path) + 1, 1, 1);
    gmem_status status = GMEM_E_MEMORY;
    if (file->path) {
        memcpy(file->path, path, strlen(path));
        status = gmem__detect(file, error);
        if (status == GMEM_OK) status = gmem__parse(file, error);
        if (status == GMEM_OK) status = gmem__select(file, key, error);
        gmem__fail_in(error, status, path);
    } else {
        gmem__fail_at(error, status, path, -1, "no memory to open the file");
    }
    if (status != GMEM_OK) {
        gmem_file_close(file);
        return status;
    }
    gmem__log_opened(file);
    *out = file;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_file_open(gmem_context *context, const char *path, const char *key, gmem_file **out,
                                    gmem_error *error) {
    gmem__bytes bytes;
    if (!context || !path || !out)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a path and a place for the file are needed");
    GMEM__TRY(gmem__bytes_open(context, path, &bytes, error));
    return gmem__file_create(context, path, bytes, key, out, error);
}

GMEM_API gmem_status gmem_file_open_memory(gmem_context *context, const char *name, const void *data, size_t size,
                                           const char *key, gmem_file **out, gmem_error *error) {
    gmem__bytes bytes;
    if (!context || !out || (!data && size) || (uint64_t)size > INT64_MAX)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, the file's bytes and a place for the file are needed");
    memset(&bytes, 0, sizeof bytes);
    bytes.data = (const unsigned char *)data;
    bytes.size = (int64_t)size;
    return gmem__file_create(context, name ? name : "memory", bytes, key, out, error);
}

GMEM_API void gmem_file_close(gmem_file *file) {
    if (!file) return;
    const gmem_context *context = file->context;
    gmem__free(context, file->leaves, file->leaf_capacity, sizeof *file->leaves);
    gmem__free(context, file->values, file->value_capacity, sizeof *file->values);
    gmem__free(context, (void *)file->foreign, file->foreign_capacity, sizeof *file->foreign);
    gmem__free(context, (void *)file->metadata, file->metadata_capacity, 2 * sizeof *file->metadata);
    gmem__blocks_free(context, &file->blocks);
    gmem__bytes_close(context, &file->bytes);
    gmem__free(context, file, 1, sizeof *file);
}

GMEM__FN void gmem__file_discard(const gmem_file *file, const void *data, int64_t bytes) {
    const gmem_io *io = &file->context->io;
    const uintptr_t start = (uintptr_t)file->bytes.data, at = (uintptr_t)data;
    if (!file->bytes.mapped || !io->discard || at < start || at - start > (uintptr_t)file->bytes.size) return;
    if (bytes < 1 || bytes > file->bytes.size - (int64_t)(at - start)) return;
    io->discard(io->user, data, bytes);
}

/* answers --------------------------------------------------------------------------------------------------------- */

GMEM_API const char *gmem_file_path(const gmem_file *file) { return file->path; }
GMEM_API gmem_format gmem_file_format(const gmem_file *file) { return file->format; }
GMEM_API int64_t gmem_file_bytes(const gmem_file *file) { return file->bytes.size; }
GMEM_API const char *gmem_file_key(const gmem_file *file) { return file->key; }
GMEM_API int64_t gmem_file_tensor_count(const gmem_file *file) { return file->selected_count; }

GMEM_API const gmem_tensor *gmem_file_tensor(const gmem_file *file, int64_t index) {
    return index >= 0 && index < file->selected_count ? file->selected + index : NULL;
}

/* The first selected tensor, in the order of names, that doesn't stand before `name`; or NULL. */
static const gmem_tensor *gmem__first_from(const gmem_file *file, const char *name) {
    int64_t low = 0, high = file->selected_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (strcmp(file->selected[file->index[middle]].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < file->selected_count ? file->selected + file->index[low] : NULL;
}

GMEM_API const gmem_tensor *gmem_file_find(const gmem_file *file, const char *name) {
    const gmem_tensor *tensor = gmem__first_from(file, name);
    return tensor && strcmp(tensor->name, name) == 0 ? tensor : NULL;
}

GMEM__FN int gmem__file_has_prefix(const gmem_file *file, const char *prefix) {
    const gmem_tensor *tensor = gmem__first_from(file, prefix);
    return tensor && strncmp(tensor->name, prefix, strlen(prefix)) == 0;
}

GMEM_API const gmem_tensor *gmem_file_find_any(const gmem_file *file, const char *key) {
    for (int64_t i = 0; i < file->leaf_count; i++) {
        if (strcmp(file->leaves[i].tensor.name, key) == 0) return &file->leaves[i].tensor;
    }
    return NULL;
}

static const gmem__value *gmem__find_value(const gmem_file *file, const char *key, gmem__entry_kind kind) {
    for (int64_t i = 0; i < file->value_count; i++) {
        if (file->values[i].kind == (int32_t)kind && strcmp(file->values[i].key, key) == 0) return file->values + i;
    }
    return NULL;
}

GMEM_API int gmem_file_number(const gmem_file *file, const char *key, double *out) {
    const gmem__value *value = gmem__find_value(file, key, GMEM__ENTRY_NUMBER);
    if (value) *out = value->as.number;
    return value != NULL;
}

GMEM_API const char *gmem_file_string(const gmem_file *file, const char *key) {
    const gmem__value *value = gmem__find_value(file, key, GMEM__ENTRY_STRING);
    return value ? value->as.string : gmem_file_metadata(file, key);
}

GMEM_API const char *gmem_file_metadata(const gmem_file *file, const char *key) {
    for (int64_t i = 0; i < file->metadata_count; i++) {
        if (strcmp(file->metadata[2 * i], key) == 0) return file->metadata[2 * i + 1];
    }
    return NULL;
}

GMEM_API int64_t gmem_file_metadata_count(const gmem_file *file) { return file->metadata_count; }

GMEM_API void gmem_file_metadata_at(const gmem_file *file, int64_t index, const char **key, const char **value) {
    const int there = index >= 0 && index < file->metadata_count;
    *key = there ? file->metadata[2 * index] : NULL;
    *value = there ? file->metadata[2 * index + 1] : NULL;
}

GMEM_API int gmem_file_next_value(const gmem_file *file, int64_t *cursor, const char **key, double *number,
                                  const char **string) {
    while (*cursor >= 0 && *cursor < file->value_count) {
        const gmem__value *value = file->values + (*cursor)++;
        if (value->kind == GMEM__ENTRY_FOREIGN) continue;
        *key = value->key;
        *string = value->kind == GMEM__ENTRY_STRING ? value->as.string : NULL;
        if (value->kind == GMEM__ENTRY_NUMBER) *number = value->as.number;
        return 1;
    }
    return 0;
}

GMEM_API int64_t gmem_file_foreign_count(const gmem_file *file) { return file->foreign_count; }

GMEM_API const char *gmem_file_foreign(const gmem_file *file, int64_t index) {
    return index >= 0 && index < file->foreign_count ? file->foreign[index] : NULL;
}

GMEM_API int gmem_file_next_foreign(const gmem_file *file, int64_t *cursor, const char **key, const char **global) {
    while (*cursor >= 0 && *cursor < file->value_count) {
        const gmem__value *value = file->values + (*cursor)++;
        if (value->kind != GMEM__ENTRY_FOREIGN || !gmem__name_within(value->key, file->key)) continue;
        *key = value->key;
        *global = value->as.string;
        return 1;
    }
    return 0;
}

GMEM__FN const char *gmem__file_foreign_at(const gmem_file *file, const char *name) {
    for (int64_t i = 0; i < file->value_count; i++) {
        const gmem__value *value = file->values + i;
        const char *within = value->kind == GMEM__ENTRY_FOREIGN ? gmem__name_within(value->key, file->key) : NULL;
        if (within && (!within[0] || gmem__name_within(name, gmem__strip_front(within)))) return value->as.string;
    }
    return NULL;
}

#undef GMEM__FILE_MAX_COUNT
#undef GMEM__FILE_MAX_FOREIGN
#undef GMEM__DICTIONARIES
