/* The small operations on an OpenCL device: copies, patches, sums as exact as the CPU's, noise, notes, pixels, what
 * passes between streams, and what happens to them after a failure. */
#include "../src/random.h"
#include "device.h"

/* shapes ----------------------------------------------------------------------------------------------------------- */

static double *doubles(const matrix *m) { return reference_copy(m->data, m->rows, m->columns, m->stride); }

static void test_copy(void) {
    static const int64_t widths[] = {1, 7, 36, 300};
    for (int i = 0; i < LENGTH(widths) - small; i++) {
        matrix from = matrix_random(5, widths[i], 3), to = matrix_random(5, widths[i], i);
        double *expected = doubles(&from);
        gmem__copy op;
        op.to = put_matrix(&to);
        op.from = put_matrix(&from);
        op.rows = 5;
        op.width = widths[i];
        op.to_stride = to.stride;
        op.from_stride = from.stride;
        engine.ops->copy(&engine, &op);
        check_matrix("copy", &to, op.to, expected);
        device_free();
        free(expected);
        matrix_free(&from);
        matrix_free(&to);
    }
}

/* Rows closed up in place: (rows, width) from `offset` on, stride apart, to the front, without gaps. */
static void overlapping_case(int64_t rows, int64_t width, int64_t stride, int64_t offset) {
    const int64_t count = offset + rows * stride;
    matrix all = matrix_random(1, count, 0);
    double *expected = doubles(&all);
    gmem__copy op;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++)
            expected[r * width + c] = (double)all.data[offset + r * stride + c];
    op.to = put_matrix(&all);
    op.from = op.to + offset;
    op.rows = rows;
    op.width = width;
    op.to_stride = width;
    op.from_stride = stride;
    engine.ops->copy(&engine, &op);
    check_matrix("copy onto itself", &all, op.to, expected);
    device_free();
    free(expected);
    matrix_free(&all);
}

static void test_copy_overlapping(void) {
    overlapping_case(1, 50, 50, 3);
    overlapping_case(7, 5, 8, 0);
    overlapping_case(9, 40, 41, 1);
    overlapping_case(9, 40, 40, 40);
    if (!small) overlapping_case(70, 300, 320, 5);
}

static void patches_case(int64_t samples, int64_t channels, int64_t height, int64_t width, int64_t patch,
                         int64_t patch_channels, int to_latents) {
    const int64_t across = width / patch, tokens = height / patch * across, area = patch * patch;
    const int64_t rows = to_latents ? area * patch_channels : area * channels;
    matrix latents = matrix_random(samples * channels * height, width, 0);
    matrix patches = matrix_random(rows, samples * tokens, 0);
    matrix *out = to_latents ? &latents : &patches;
    double *expected = (double *)need(out->rows * out->columns, sizeof *expected);
    for (int64_t i = 0; i < samples * channels * height * width; i++) {
        const int64_t x = i % width, y = i / width % height, channel = i / width / height % channels;
        const int64_t inside = y % patch * patch + x % patch;
        const int64_t row = to_latents ? inside * patch_channels + channel : channel * area + inside;
        const int64_t at =
            row * samples * tokens + i / width / height / channels * tokens + y / patch * across + x / patch;
        if (to_latents)
            expected[i] = (double)patches.data[at];
        else
            expected[at] = (double)latents.data[i];
    }
    gmem__patches op;
    op.latents = put_matrix(&latents);
    op.patches = put_matrix(&patches);
    op.samples = samples;
    op.channels = channels;
    op.height = height;
    op.width = width;
    op.patch = patch;
    op.patch_channels = patch_channels;
    op.to_latents = to_latents;
    engine.ops->patches(&engine, &op);
    check_matrix(to_latents ? "to latents" : "to patches", out, to_latents ? op.latents : op.patches, expected);
    device_free();
    free(expected);
    matrix_free(&latents);
    matrix_free(&patches);
}

static void test_patches(void) {
    for (int to_latents = 0; to_latents < 2; to_latents++) {
        patches_case(1, 1, 1, 1, 1, 1, to_latents);
        patches_case(2, 4, 6, 10, 2, 8, to_latents);
        patches_case(3, 3, 9, 6, 3, 3, to_latents);
        if (!small) patches_case(2, 4, 32, 32, 2, 8, to_latents);
    }
}

static void test_transpose(void) {
    static const int64_t shapes[][2] = {{1, 1}, {1, 40}, {33, 1}, {15, 17}, {16, 16}, {70, 35}, {3, 300}};
    for (int i = 0; i < LENGTH(shapes) - small; i++) {
        matrix x = matrix_random(shapes[i][0], shapes[i][1], 0), y = matrix_random(shapes[i][1], shapes[i][0], i);
        double *expected = (double *)need(x.rows * x.columns, sizeof *expected);
        for (int64_t r = 0; r < x.rows; r++)
            for (int64_t c = 0; c < x.columns; c++)
                expected[c * x.rows + r] = (double)x.data[r * x.columns + c];
        gmem__transpose op;
        op.x = put_matrix(&x);
        op.y = put_matrix(&y);
        op.rows = x.rows;
        op.columns = x.columns;
        op.y_stride = y.stride;
        engine.ops->transpose(&engine, &op);
        check_matrix("transpose", &y, op.y, expected);
        device_free();
        free(expected);
        matrix_free(&x);
        matrix_free(&y);
    }
}

/* values ----------------------------------------------------------------------------------------------------------- */

static void test_silu(void) {
    static const int64_t counts[] = {1, 255, 256, 1031};
    for (int i = 0; i < LENGTH(counts) - small; i++) {
        matrix x = matrix_random(1, counts[i], 0);
        for (int64_t j = 0; j < counts[i]; j += 3)
            x.data[j] *= 100;
        double *expected = doubles(&x);
        for (int64_t j = 0; j < counts[i]; j++)
            expected[j] = activate(GMEM__ACT_SILU, expected[j]);
        float *there = put_matrix(&x);
        engine.ops->silu(&engine, there, counts[i]);
        check_matrix("silu", &x, there, expected);
        device_free();
        free(expected);
        matrix_free(&x);
    }
}

/* As in double, then rounded: the same float but where that is a tie or nearly. `cancel`: weights whose sum is 0 on
 * values that are nearly equal. */
static void combine_case(int64_t rows, int64_t width, int terms, int cancel, int in_place) {
    static const double usual[GMEM__MAX_TERMS] = {1.0 / 3, -0.7, 1e-3, 2.123456789, -5.5, 1e-9, 0.1, 35.0 / 384};
    matrix x = matrix_random(rows, width, SLACK), out = matrix_random(rows, width, SLACK), k[GMEM__MAX_TERMS];
    gmem__combine op;
    memset(&op, 0, sizeof op);
    op.x_weight = -1.0 / 7;
    op.terms = terms;
    op.rows = rows;
    op.width = width;
    op.stride = x.stride;
    double total = op.x_weight;
    for (int j = 0; j < terms; j++) {
        op.weight[j] = cancel && j == terms - 1 ? -total : usual[j];
        total += op.weight[j];
        k[j] = matrix_random(rows, width, SLACK);
        for (int64_t i = 0; cancel && i < rows * x.stride; i++)
            if (i % x.stride < width) k[j].data[i] = x.data[i] * (1 + 1e-5f * k[j].data[i]);
    }
    float *expected = (float *)need(rows * width, sizeof *expected);
    for (int64_t i = 0; i < rows * width; i++) {
        const int64_t at = i / width * x.stride + i % width;
        double sum = op.x_weight * (double)x.data[at];
        for (int j = 0; j < terms; j++)
            sum += op.weight[j] * (double)k[j].data[at];
        expected[i] = (float)sum;
    }
    op.x = put_matrix(&x);
    for (int j = 0; j < terms; j++)
        op.k[j] = put_matrix(&k[j]);
    op.out = in_place ? (float *)(uintptr_t)(terms ? op.k[0] : op.x) : put_matrix(&out);
    engine.ops->combine(&engine, &op);
    matrix got = take_back(&x, op.out, "combine");
    int64_t differ = 0;
    double error = 0, norm = 0;
    for (int64_t i = 0; i < rows * width; i++) {
        const double value = (double)got.data[i / width * x.stride + i % width], want = (double)expected[i];
        differ += value != want;
        error += (value - want) * (value - want);
        norm += want * want;
    }
    CHECK(matrix_guards_hold(&got));
    if (!CHECK(sqrt(error / norm) <= (cancel ? 2e-7 : 2e-8)) || !CHECK(cancel || differ <= 1 + rows * width / 1000))
        printf("    combine of %d terms, cancel %d: error %.3g, %d of %d differ\n", terms, cancel, sqrt(error / norm),
               (int)differ, (int)(rows * width));
    device_free();
    free(expected);
    matrix_free(&got);
    matrix_free(&x);
    matrix_free(&out);
    for (int j = 0; j < terms; j++)
        matrix_free(&k[j]);
}

static void test_combine(void) {
    for (int terms = 0; terms <= GMEM__MAX_TERMS; terms++) {
        combine_case(1, small ? 70 : 1031, terms, 0, 0);
        combine_case(3, small ? 9 : 401, terms, 0, 1);
        if (terms) combine_case(2, small ? 33 : 400, terms, 1, terms % 2);
    }
}

static void test_scale_shift(void) {
    matrix x = matrix_random(3, 77, 0), scale = matrix_random(1, 3, 0), shift = matrix_random(1, 3, 0);
    double *expected = doubles(&x);
    for (int i = 0; i < 3 * 77; i++)
        expected[i] = expected[i] * (double)scale.data[i / 77] + (double)shift.data[i / 77];
    gmem__scale_shift op;
    op.x = op.y = put_matrix(&x);
    op.scale = put_matrix(&scale);
    op.shift = put_matrix(&shift);
    op.channels = 3;
    op.area = 77;
    engine.ops->scale_shift(&engine, &op);
    check_matrix("scale_shift", &x, op.y, expected);
    device_free();
    free(expected);
    matrix_free(&x);
    matrix_free(&scale);
    matrix_free(&shift);
}

static void test_pixels(void) {
    static const float special[] = {NAN, INFINITY, -INFINITY, 1, -1, 0, 1.5f, -1.5f};
    const gmem__ops *cpu = gmem__cpu_ops(GMEM_ISA_SCALAR, NULL);
    const int64_t area = small ? 77 : 4099;
    matrix x = matrix_random(3, area, 0);
    for (int i = 0; i < LENGTH(special); i++)
        x.data[i * 13] = special[i];
    uint8_t *got = (uint8_t *)need(3 * area + 1, 1), *expected = (uint8_t *)need(3 * area, 1);
    got[3 * area] = 99;
    cpu->pixels(NULL, expected, x.data, area, 127.5f);
    engine.ops->pixels(&engine, got, put_matrix(&x), area, 127.5f);
    settle("pixels");
    CHECK(memcmp(got, expected, (size_t)(3 * area)) == 0 && got[3 * area] == 99);
    device_free();
    free(got);
    free(expected);
    matrix_free(&x);
}

static void test_hand_over(void) {
    gmem__engine other = engine;
    gmem_error error;
    if (!CHECK_OK(gmem__stream_open(context->device, NULL, &other.stream, &error))) return;
    matrix from = matrix_random(1, 333, 0), to = matrix_random(1, 333, 0);
    double *expected = doubles(&from);
    gmem__engine own = engine;
    float *there = put_matrix(&to);
    gmem__arena arena;
    memset(&arena, 0, sizeof arena);
    (void)gmem__take(&arena, 333, sizeof(float));
    CHECK(other.ops->reserve(&other, context, &arena));
    float *source = (float *)gmem__take(&arena, 333, sizeof(float));
    other.ops->upload(&other, source, from.data, 333);
    other.ops->silu(&other, source, 333);
    other.ops->hand_over(&other, source, &own, there, 333);
    for (int i = 0; i < 333; i++)
        expected[i] = activate(GMEM__ACT_SILU, expected[i]);
    check_matrix("hand_over", &to, there, expected);
    other.ops->release(&other, context, &arena);
    gmem__stream_close(other.stream);
    device_free();
    free(expected);
    matrix_free(&from);
    matrix_free(&to);
}

/* What is not finite is still not finite afterwards, and infinity is not NaN. */
static void test_combine_nonfinite(void) {
    const float x[4] = {NAN, INFINITY, -INFINITY, 3e38f};
    float out[4];
    gmem__combine op;
    memset(&op, 0, sizeof op);
    op.x = put(x, 4);
    op.out = device_alloc(4);
    op.x_weight = 2;
    op.rows = 1;
    op.width = op.stride = 4;
    engine.ops->combine(&engine, &op);
    engine.ops->download(&engine, out, op.out, 4);
    settle("combine");
    CHECK(isnan(out[0]) && out[1] == INFINITY && out[2] == -INFINITY && out[3] == INFINITY);
    device_free();
}

static void test_normal(void) {
    static const int64_t sizes[] = {1, 2, 3, 7, 1027};
    for (int i = 0; i < LENGTH(sizes); i++) {
        gmem__normal op;
        gmem_rng rng;
        op.seed = 0xfedcba9876543210u;
        op.draw = GMEM_DRAW_STEP;
        op.index = 41;
        op.picture = 0xfffffffe; /* the third counts into the upper word */
        op.count = 4;
        op.per_picture = small ? gmem__min(sizes[i], 101) : sizes[i];
        const int64_t count = op.count * op.per_picture;
        matrix out = matrix_random(1, count, 0);
        float *expected = (float *)need(count, sizeof *expected);
        gmem_rng_init(&rng, GMEM_RNG_PHILOX, op.seed);
        gmem_rng_normal(&rng, GMEM_DRAW_STEP, op.index, op.picture, op.count, op.per_picture, expected);
        op.out = put_matrix(&out);
        engine.ops->normal(&engine, &op);
        double *exact = reference_copy(expected, 1, count, count);
        check_matrix("normal", &out, op.out, exact);
        device_free();
        free(exact);
        free(expected);
        matrix_free(&out);
    }
}

static void test_finite(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    gmem_error error;
    const int64_t count = small ? 300 : 20011;
    for (int i = 0; i < 3; i++) {
        matrix x = matrix_random(1, count, 0);
        int notes = 0;
        float *there = put_matrix(&x);
        CHECK_INT(engine.ops->finite(&engine, there, count, GMEM__NOTE_STATE), 1);
        settle("finite");
        x.data[i == 0 ? 0 : i == 1 ? 131 : count - 1] = bad[i];
        engine.ops->upload(&engine, there - GUARD, x.memory, matrix_floats(&x));
        CHECK_INT(engine.ops->finite(&engine, there, count, GMEM__NOTE_STATE), 1);
        CHECK_INT(engine.ops->finite(&engine, there, count, GMEM__NOTE_IMAGE), 1);
        CHECK_OK(engine.ops->settle(&engine, &notes, &error));
        CHECK_INT(notes, GMEM__NOTE_STATE | GMEM__NOTE_IMAGE);
        settle("finite"); /* the notes are gone */
        device_free();
        matrix_free(&x);
    }
}

/* sums ------------------------------------------------------------------------------------------------------------- */

/* The weights of an embedded method's error, whose sum is 0, on slopes that are nearly equal. */
static void error_norm_case(int64_t count, int has_y, int terms) {
    static const double usual[] = {71.0 / 57600, 0, -71.0 / 16695, 71.0 / 1920, -17253.0 / 339200, 22.0 / 525, -0.025};
    matrix x = matrix_random(1, count, 0), y = matrix_random(1, count, 0), k[7];
    double expected = 0;
    gmem__error_norm op;
    memset(&op, 0, sizeof op);
    op.terms = terms;
    op.atol = 1e-6;
    op.rtol = 1e-5;
    op.count = count;
    for (int j = 0; j < terms; j++) {
        op.weight[j] = 0.02 * usual[j];
        k[j] = matrix_random(1, count, 0);
        for (int64_t i = 0; i < count; i++)
            k[j].data[i] = x.data[i] * 3 + 1e-3f * k[j].data[i];
    }
    for (int64_t i = 0; i < count; i++) {
        double sum = 0, size = fabs((double)x.data[i]);
        for (int j = 0; j < terms; j++)
            sum += op.weight[j] * (double)k[j].data[i];
        if (has_y) size = fmax(size, fabs((double)y.data[i]));
        sum /= op.atol + op.rtol * size;
        expected += sum * sum;
    }
    op.x = put_matrix(&x);
    op.y = has_y ? put_matrix(&y) : NULL;
    for (int j = 0; j < terms; j++)
        op.k[j] = put_matrix(&k[j]);
    const double got = engine.ops->error_norm(&engine, &op);
    settle("error_norm");
    if (!CHECK(fabs(got - expected) <= BAR * expected))
        printf("    error_norm of %d: %.9g, not %.9g\n", (int)count, got, expected);
    device_free();
    matrix_free(&x);
    matrix_free(&y);
    for (int j = 0; j < terms; j++)
        matrix_free(&k[j]);
}

static void test_error_norm(void) {
    static const int64_t counts[] = {1, 255, 2049, 16411};
    for (int i = 0; i < LENGTH(counts) - 2 * small; i++)
        for (int has_y = 0; has_y < 2; has_y++)
            error_norm_case(counts[i], has_y, i % 2 ? 7 : 1);
}

/* Nearly everything cancels. */
static void test_change(void) {
    static const int64_t shapes[][2] = {{1, 1}, {3, 17}, {37, 36}, {300, 301}};
    for (int i = 0; i < LENGTH(shapes) - small; i++) {
        const int64_t rows = shapes[i][0], width = shapes[i][1];
        matrix after = matrix_random(rows, width, SLACK), before = matrix_random(rows, width, 0);
        matrix residual = matrix_random(rows, width, 0);
        double change = 0, size = 0, got_change = -1, got_size = -1;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < width; c++) {
                float *then = &residual.data[r * width + c], *to = &after.data[r * after.stride + c];
                const float from = before.data[r * width + c];
                *to = from + *then + 1e-4f * *to;
                change += fabs((double)*to - (double)from - (double)*then);
                size += fabs((double)*then);
            }
        gmem__change op;
        op.after = put_matrix(&after);
        op.before = put_matrix(&before);
        op.residual = put_matrix(&residual);
        op.rows = rows;
        op.width = width;
        op.after_stride = after.stride;
        engine.ops->change(&engine, &op, &got_change, &got_size);
        settle("change");
        if (!CHECK(fabs(got_change - change) <= BAR * change) || !CHECK(fabs(got_size - size) <= BAR * size))
            printf("    change (%d, %d): %.9g of %.9g, not %.9g of %.9g\n", (int)rows, (int)width, got_change, got_size,
                   change, size);
        device_free();
        matrix_free(&after);
        matrix_free(&before);
        matrix_free(&residual);
    }
}

/* Nothing to do is no error. */
static void test_nothing(void) {
    gmem__norm norm;
    gmem__copy copy;
    gmem__combine combine;
    gmem__error_norm error_norm;
    gmem__linear linear;
    gmem__weight weight;
    memset(&norm, 0, sizeof norm);
    memset(&copy, 0, sizeof copy);
    memset(&combine, 0, sizeof combine);
    memset(&error_norm, 0, sizeof error_norm);
    memset(&linear, 0, sizeof linear);
    memset(&weight, 0, sizeof weight);
    linear.weight = &weight;
    engine.ops->norm(&engine, &norm);
    engine.ops->copy(&engine, &copy);
    engine.ops->combine(&engine, &combine);
    engine.ops->linear(&engine, &linear);
    engine.ops->silu(&engine, NULL, 0);
    engine.ops->download(&engine, NULL, NULL, 0);
    engine.ops->upload(&engine, NULL, NULL, 0);
    CHECK(engine.ops->error_norm(&engine, &error_norm) == 0);
    CHECK_INT(engine.ops->finite(&engine, NULL, 0, GMEM__NOTE_STATE), 1);
    settle("nothing");
}

/* After a failure nothing runs, outputs stay as they were, and settle keeps saying why. */
static void test_failed(void) {
    const float x[3] = {1, 2, 3};
    float out[3] = {7, 8, 9};
    double change = -1, size = -1;
    gmem__error_norm error_norm;
    gmem__change changed;
    float *there = put(x, 3);
    settle("before");
    gmem__stream_fail(engine.stream, GMEM_E_DEVICE, "on request");
    engine.ops->silu(&engine, there, 3);
    engine.ops->download(&engine, out, there, 3);
    CHECK(out[0] == 7 && out[1] == 8 && out[2] == 9);
    memset(&error_norm, 0, sizeof error_norm);
    error_norm.count = 3;
    error_norm.x = there;
    CHECK(engine.ops->error_norm(&engine, &error_norm) == 0);
    memset(&changed, 0, sizeof changed);
    changed.after = changed.before = changed.residual = there;
    changed.rows = 1;
    changed.width = changed.after_stride = 3;
    engine.ops->change(&engine, &changed, &change, &size);
    CHECK(change == 0 && size == 0);
    for (int i = 0; i < 2; i++) {
        gmem_error error;
        int notes = -1;
        memset(&error, 0, sizeof error);
        CHECK_STATUS(GMEM_E_DEVICE, engine.ops->settle(&engine, &notes, &error));
        CHECK_CONTAINS(error.message, "on request");
        CHECK_INT(notes, 0);
    }
    device_free();
}

static void test_operations(void) {
    test_copy();
    test_copy_overlapping();
    test_patches();
    test_transpose();
    test_silu();
    test_combine();
    test_combine_nonfinite();
    test_scale_shift();
    test_pixels();
    test_hand_over();
    test_normal();
    test_finite();
    test_error_norm();
    test_change();
    test_nothing();
}

int main(int argc, char **argv) { return device_main(argc, argv, test_operations, test_failed); }
