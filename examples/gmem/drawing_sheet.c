/* The grid of gmem sample: its cells, the originals among them, and the captions. */
#include "drawing.h"
#include "interrupt.h"

#include <string.h>

/* What stands in the cells of a grid besides what is drawn: --like has each picture before its variations, --mix those
 * of its ends that are pictures before and after the frames, as the published script's sheets. */
static int end_is_picture(const drawing *d, int end) {
    return d->chosen.kind == CHOICE_MIX && picture_of(&d->chosen, d->chosen.items[end]) != NULL;
}

int64_t cells_of(const drawing *d) {
    if (d->chosen.kind == CHOICE_LIKE) return d->count + d->chosen.count;
    return d->count + end_is_picture(d, 0) + end_is_picture(d, 1);
}

static int64_t cell_of(const drawing *d, int64_t index) {
    if (d->chosen.kind == CHOICE_LIKE) return index + chosen_index(d, index) + 1;
    return index + end_is_picture(d, 0);
}

static outcome put_original(drawing *d, int64_t item, int64_t cell, gmem_error *error) {
    const chosen_picture *chosen = picture_of(&d->chosen, item);
    int64_t size = d->height < d->width ? d->height : d->width, pixels = d->height * d->width * 3;
    uint8_t *square = (uint8_t *)session_alloc(&d->s, size * size * 3, 1);
    uint8_t *resized = (uint8_t *)session_alloc(&d->s, pixels, 1);
    picture original;
    if (!square || !resized) return out_of_memory(error);
    TRY(load_picture(&d->s, chosen->path, &original, error));
    TRY(crop_picture(&d->s, &original, size, square, error));
    TRY(from_status(
        gmem_resize(d->s.context, GMEM_FILTER_BICUBIC, size, size, square, d->height, d->width, resized, error)));
    output_original(&d->out, cell, resized, chosen->name);
    return OUTCOME_DONE;
}

outcome put_originals(drawing *d, gmem_error *error) {
    int64_t step = d->chosen.kind == CHOICE_LIKE ? d->count / d->chosen.count + 1 : d->count + end_is_picture(d, 0);
    if (d->out.separate || (d->chosen.kind != CHOICE_LIKE && d->chosen.kind != CHOICE_MIX)) return OUTCOME_DONE;
    for (int64_t i = 0; i < d->chosen.count; i++) {
        if (picture_of(&d->chosen, d->chosen.items[i])) TRY(put_original(d, d->chosen.items[i], i * step, error));
    }
    return OUTCOME_DONE;
}

static outcome put_picture(drawing *d, int64_t index, const uint8_t *pixels, gmem_error *error) {
    char item[64], label[80];
    const chosen_picture *photo;
    caption c;
    memset(&c, 0, sizeof c);
    c.item = item;
    c.label = label;
    if (d->chosen.kind == CHOICE_MIX) {
        snprintf(item, sizeof item, "%.3g", alpha_of(d, index));
        snprintf(label, sizeof label, "%s", item);
    } else if ((photo = picture_of(&d->chosen, d->items[index])) != NULL) {
        c.item = photo->path;
        c.label = d->chosen.kind == CHOICE_LIKE ? "" : photo->name;
    } else {
        snprintf(item, sizeof item, "%lld", (long long)d->items[index]);
        snprintf(label, sizeof label, "%s %s", has_snippets(d) ? "row" : "class", item);
        c.name = d->s.bank ? gmem_bank_name(d->s.bank, d->items[index]) : NULL;
        if (c.name) c.label = c.name;
    }
    return output_put(&d->out, index, cell_of(d, index), pixels, &c, error);
}

outcome put_batch(drawing *d, int64_t first, int64_t count, gmem_error *error) {
    for (int64_t i = 0; i < count; i++) {
        TRY(put_picture(d, first + i, d->pixels + i * 3 * d->height * d->width, error));
    }
    return interrupt_check(error);
}

int columns_of(const drawing *d) {
    int64_t cells = cells_of(d);
    int columns = 1;
    if (d->chosen.kind == CHOICE_LIKE) return (int)(d->count / d->chosen.count) + 1;
    if (d->chosen.kind == CHOICE_MIX) return cells < 10 ? (int)cells : 10;
    while ((int64_t)columns * columns < cells) {
        columns++;
    }
    return columns;
}
