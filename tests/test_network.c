/* The transformer: every recorded network on every instruction set, prepared and unprepared passes, and what malformed
 * networks get. */
#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"
#include "torch_bytes.h"

/* Relative L2 error against the recorded outputs. Those differ from exact arithmetic by 4e-7, a pass in f32 by twice
 * that; what is asked for is 1e-5. */
#define BAR 2e-6

/* What opening the list as a network gives; frees the list. `error` is always filled in. */
static gmem_status status_of(gmem_context *context, edit_list *list, const char *config, gmem_error *error) {
    gmem_network_desc desc;
    gmem_network *network = NULL;
    memset(&desc, 0, sizeof desc);
    memset(error, 0, sizeof *error);
    if (config) edit_metadata(list, "config", config);
    desc.file = edit_open(context, list);
    gmem_status status = gmem_network_open(context, &desc, &network, error);
    CHECK((status == GMEM_OK) == (network != NULL));
    gmem_network_close(network);
    gmem_file_close(desc.file);
    edit_free(list);
    return status;
}

/* passes ---------------------------------------------------------------------------------------------------------- */

/* A recorded case with its inputs and outputs. */
typedef struct opened {
    golden_case recorded;
    const gmem_file *io;
    const gmem_file *weights;
    const gmem_network *network;
    const gmem_network_info *info;
    float *x, *t, *c, *y; /* x, y (batch, channels, height, width), t (batch), c (batch, snippet_width) or NULL */
    int64_t *label;       /* (batch) or NULL */
    int64_t batch, count; /* count: of x */
} opened;

static opened open_case(gmem_context *context, const char *name) {
    opened it;
    memset(&it, 0, sizeof it);
    it.recorded = golden_case_open(context, name, NULL);
    it.io = it.recorded.io;
    it.weights = it.recorded.weights.file;
    it.network = it.recorded.network;
    it.info = gmem_network_get_info(it.network);
    it.x = golden_f32(it.io, "x", &it.count);
    it.t = golden_f32(it.io, "t", &it.batch);
    it.y = golden_f32(it.io, golden_has(it.io, "y") ? "y" : "v", NULL);
    if (golden_has(it.io, "c")) it.c = golden_f32(it.io, "c", NULL);
    if (golden_has(it.io, "label")) it.label = golden_i64(it.io, "label", NULL);
    return it;
}

static void close_case(opened *it) {
    golden_case_close(&it->recorded);
    free(it->x);
    free(it->t);
    free(it->c);
    free(it->y);
    free(it->label);
}

static float *zeros(int64_t count) {
    float *memory = (float *)calloc((size_t)count + 1, sizeof *memory);
    if (!memory) exit(1);
    return memory;
}

/* One pass of `network` on the case's inputs: v (count), malloc'ed. */
static float *run(const opened *it, const gmem_network *network) {
    gmem_pass *pass = NULL;
    gmem_error error;
    float *v = zeros(it->count);
    memset(&error, 0, sizeof error);
    CHECK_OK(gmem_pass_create(network, it->batch, &pass, &error));
    if (!CHECK_OK(gmem_pass_run(pass, it->batch, it->x, it->t, it->c, it->label, v, &error)))
        printf("%s\n", error.message);
    gmem_pass_destroy(pass);
    return v;
}

static const char *const cases[] = {"dit_base",
                                    "dit_patch2",
                                    "dit_qknorm",
                                    "dit_gelu",
                                    "dit_layernorm",
                                    "dit_noshift",
                                    "dit_layernorm_qknorm",
                                    "dit_norope",
                                    "dit_feat96",
                                    "dit_learnsigma",
                                    "dit_odd",
                                    "dit_wide",
                                    "sit_plain",
                                    "sit_qknorm",
                                    "gmem_sit",
                                    "lightningdit_class"};
enum { CASES = sizeof cases / sizeof cases[0] };

static void test_cases(gmem_context *context, gmem_isa isa) {
    double worst = 0;
    const char *where = "";
    for (int i = 0; i < CASES; i++) {
        opened it = open_case(context, cases[i]);
        float *v = run(&it, it.network);
        CHECK_CLOSE(cases[i], v, it.y, it.count, BAR);
        double error = check_relative_l2(v, it.y, it.count);
        if (error > worst) {
            worst = error;
            where = cases[i];
        }
        free(v);
        close_case(&it);
    }
    printf("%s: %d networks, largest relative L2 error %.2g (%s)\n", golden_isa_name(isa), CASES, worst, where);
}

/* Checkpoints as they are published: `ema` and not its decoy `model`, the stored pos_embed, module prefixes; `heads`
 * where the file cannot tell them. */
static void test_checkpoint(gmem_context *context, const char *name, const char *path, int heads,
                            const char *expected) {
    opened it = open_case(context, name);
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.path = path;
    if (heads) CHECK_STATUS(GMEM_E_HEADS, gmem_network_open(context, &desc, &network, NULL));
    desc.heads = heads;
    if (CHECK_OK(gmem_network_open(context, &desc, &network, &error))) {
        float *y = golden_f32(it.io, expected, NULL), *v = run(&it, network);
        CHECK_CLOSE(path, v, y, it.count, BAR);
        CHECK_INT(gmem_network_get_info(network)->heads, it.info->heads);
        CHECK_INT(gmem_network_get_info(network)->parameters, it.info->parameters);
        CHECK_INT(gmem_network_get_info(network)->time_reversed, it.info->time_reversed);
        free(y);
        free(v);
    } else {
        printf("%s: %s\n", path, error.message);
    }
    gmem_network_close(network);
    close_case(&it);
}

static void test_checkpoints(gmem_context *context) {
    test_checkpoint(context, "dit_base", "tests/golden/dit_base.pth", 0, "y_checkpoint");
    test_checkpoint(context, "lightningdit_class", "tests/golden/lightningdit_class.pt", 0, "v");
    test_checkpoint(context, "sit_plain", "tests/golden/sit_plain.pt", 4, "v");
}

/* Each case's own configuration says what should have been seen in its tensors. */
static void test_info(gmem_context *context) {
    for (int i = 0; i < CASES; i++) {
        opened it = open_case(context, cases[i]);
        const gmem_network_info *info = it.info;
        double value = 0;
        struct {
            const char *key;
            int64_t actual;
        } expected[] = {
            {"input_size", info->height},   {"patch_size", info->patch}, {"in_channels", info->channels},
            {"hidden_size", info->hidden},  {"depth", info->depth},      {"num_heads", info->heads},
            {"num_classes", info->classes}, {"use_rope", info->rope},    {"feature_dim", info->snippet_width},
            {"use_qknorm", info->qk_norm},  {"qk_norm", info->qk_norm},  {"use_rmsnorm", info->rmsnorm},
            {"use_swiglu", info->swiglu},   {"wo_shift", !info->shift},  {"learn_sigma", info->learned_sigma}};
        for (size_t j = 0; j < sizeof expected / sizeof expected[0]; j++) {
            if (!golden_number(it.io, "config", expected[j].key, &value)) continue;
            if (!CHECK_INT(expected[j].actual, value)) printf("  %s of %s\n", expected[j].key, cases[i]);
        }
        int sit = strstr(cases[i], "sit_") != NULL || strstr(cases[i], "_sit") != NULL;
        CHECK_INT(info->architecture,
                  it.c ? (sit ? GMEM_ARCH_GMEM_SIT : GMEM_ARCH_GMEM) : (sit ? GMEM_ARCH_SIT : GMEM_ARCH_LIGHTNINGDIT));
        CHECK_INT(info->time_reversed, sit);
        CHECK_INT(info->tokens, info->height / info->patch * (info->width / info->patch));
        CHECK_INT(info->head_dim * info->heads, info->hidden);
        CHECK(info->parameters > 0 && info->weight_bytes == 4 * info->parameters && info->flop > 0);
        close_case(&it);
    }
}

/* preparing, batches, conditions ---------------------------------------------------------------------------------- */

static void test_prepared(gmem_context *context, const char *name) {
    opened it = open_case(context, name);
    gmem_pass *pass = NULL;
    float *v = zeros(it.count), *plain = run(&it, it.network);
    size_t size = (size_t)it.count * sizeof(float);
    CHECK_OK(gmem_pass_create(it.network, it.batch, &pass, NULL));
    CHECK_OK(gmem_pass_prepare(pass, it.batch, it.t, it.batch, it.c, it.label, 1, NULL));
    CHECK_OK(gmem_pass_run(pass, it.batch, it.x, it.t, it.c, it.label, v, NULL));
    CHECK_CLOSE("all prepared", v, plain, it.count, 0);
    /* The last condition and time are not among these. */
    CHECK_OK(gmem_pass_prepare(pass, it.batch - 1, it.t, it.batch - 1, it.c, it.label, 0, NULL));
    memset(v, 0, size);
    CHECK_OK(gmem_pass_run(pass, it.batch, it.x, it.t, it.c, it.label, v, NULL));
    CHECK_CLOSE("some prepared", v, plain, it.count, 0);
    /* More times than are held: the rest is computed when it is needed. */
    float *many = zeros(1000);
    for (int i = 0; i < 1000; i++) {
        many[i] = (float)i / 1000;
    }
    many[999] = it.t[0];
    CHECK_OK(gmem_pass_prepare(pass, 1000, many, it.batch, it.c, it.label, 1, NULL));
    memset(v, 0, size);
    CHECK_OK(gmem_pass_run(pass, it.batch, it.x, it.t, it.c, it.label, v, NULL));
    CHECK_CLOSE("too many to prepare", v, plain, it.count, 0);
    CHECK_OK(gmem_pass_prepare(pass, 0, NULL, 0, NULL, NULL, 0, NULL));
    free(many);
    free(v);
    free(plain);
    gmem_pass_destroy(pass);
    close_case(&it);
}

/* A sample's velocity does not depend on what is drawn beside it, to the last bit. */
static void test_batches(gmem_context *context, const char *name) {
    opened it = open_case(context, name);
    gmem_pass *pass = NULL;
    int64_t one = it.count / it.batch;
    float *v = zeros(it.count), *together = run(&it, it.network);
    CHECK_OK(gmem_pass_create(it.network, it.batch, &pass, NULL));
    for (int64_t i = 0; i < it.batch; i++) {
        CHECK_OK(gmem_pass_run(pass, 1, it.x + i * one, it.t + i, it.c ? it.c + i * it.info->snippet_width : NULL,
                               it.label ? it.label + i : NULL, v + i * one, NULL));
    }
    CHECK_CLOSE(name, v, together, it.count, 0);
    free(v);
    free(together);
    gmem_pass_destroy(pass);
    close_case(&it);
}

static void test_null_condition(gmem_context *context) {
    opened snippets = open_case(context, "dit_base"), labels = open_case(context, "sit_plain");
    float *none = zeros(snippets.batch * snippets.info->snippet_width);
    float *given = snippets.c;
    snippets.c = none;
    float *zero = run(&snippets, snippets.network);
    snippets.c = NULL;
    float *null = run(&snippets, snippets.network);
    CHECK_CLOSE("zero snippet", null, zero, snippets.count, 0);
    snippets.c = given;

    int64_t *given_labels = labels.label, last[8];
    for (int i = 0; i < 8; i++) {
        last[i] = labels.info->classes;
    }
    labels.label = last;
    float *table = run(&labels, labels.network);
    labels.label = NULL;
    float *null_label = run(&labels, labels.network);
    CHECK_CLOSE("null label", null_label, table, labels.count, 0);
    labels.label = given_labels;
    free(none);
    free(zero);
    free(null);
    free(table);
    free(null_label);
    close_case(&snippets);
    close_case(&labels);
}

static void test_arguments(gmem_context *context) {
    opened it = open_case(context, "dit_base"), sit = open_case(context, "sit_plain");
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_pass *pass = NULL, *sit_pass = NULL;
    float *v = zeros(it.count), untouched = 7;
    int64_t label = 0, beyond = sit.info->classes + 1, negative = -1;
    float infinite = HUGE_VALF;
    memset(&desc, 0, sizeof desc);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_network_open(context, &desc, &network, NULL));
    desc.file = it.recorded.weights.file;
    desc.heads = -1;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_network_open(context, &desc, &network, NULL));
    desc.heads = 7;
    CHECK_STATUS(GMEM_E_HEADS, gmem_network_open(context, &desc, &network, NULL));
    desc.heads = 0;
    desc.latent_height = -8;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_network_open(context, &desc, &network, NULL));
    desc.file = NULL;
    desc.path = "build/no such file";
    desc.latent_height = 0;
    CHECK_STATUS(GMEM_E_OPEN, gmem_network_open(context, &desc, &network, NULL));
    CHECK(network == NULL);

    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_create(it.network, 0, &pass, NULL));
    CHECK_STATUS(GMEM_E_MEMORY, gmem_pass_create(it.network, INT64_MAX / 2, &pass, NULL));
    CHECK(pass == NULL);
    CHECK_OK(gmem_pass_create(it.network, 2, &pass, NULL));
    CHECK_OK(gmem_pass_create(sit.network, 2, &sit_pass, NULL));
    v[0] = untouched;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_run(pass, 0, it.x, it.t, it.c, NULL, v, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_run(pass, 3, it.x, it.t, it.c, NULL, v, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_run(pass, 1, NULL, it.t, it.c, NULL, v, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_run(pass, 1, it.x, NULL, it.c, NULL, v, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_run(pass, 1, it.x, &infinite, it.c, NULL, v, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_run(pass, 1, it.x, it.t, NULL, &label, v, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pass_run(sit_pass, 1, it.x, it.t, it.c, NULL, v, NULL));
    CHECK_STATUS(GMEM_E_LABEL, gmem_pass_run(sit_pass, 1, it.x, it.t, NULL, &beyond, v, NULL));
    CHECK_STATUS(GMEM_E_LABEL, gmem_pass_run(sit_pass, 1, it.x, it.t, NULL, &negative, v, NULL));
    CHECK_STATUS(GMEM_E_LABEL, gmem_pass_prepare(sit_pass, 1, it.t, 1, NULL, &negative, 0, NULL));
    it.x[3] = HUGE_VALF;
    CHECK_STATUS(GMEM_E_NONFINITE, gmem_pass_run(pass, 1, it.x, it.t, it.c, NULL, v, NULL));
    CHECK(v[0] == untouched);
    gmem_pass_destroy(NULL);
    gmem_network_close(NULL);
    gmem_pass_destroy(pass);
    gmem_pass_destroy(sit_pass);
    free(v);
    close_case(&it);
    close_case(&sit);
}

/* malformed networks ---------------------------------------------------------------------------------------------- */

static int is_projector(const char *name) { return strncmp(name, "projector", 9) == 0; }

static const char small_config[] = "{\\\"num_heads\\\": 4, \\\"input_size\\\": 8}";

static void add_zeros(edit_list *list, const char *name, int64_t size) {
    edit_add(list, name, GMEM_F32, 1, &size, NULL);
}

/* Each tensor in turn left out, and grown by one along its last dimension. */
static void test_each_tensor(gmem_context *context, const char *name) {
    opened it = open_case(context, name);
    gmem_error error;
    for (int i = 0; i < (int)gmem_file_tensor_count(it.weights); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(it.weights, i);
        if (is_projector(tensor->name)) continue;
        edit_list *list = edit_of(it.weights);
        edit_drop(list, tensor->name);
        int label_table = strncmp(tensor->name, "y_embedder", 10) == 0; /* without it there is no condition at all */
        CHECK_STATUS(label_table ? GMEM_E_ARCHITECTURE : GMEM_E_MISSING_TENSOR,
                     status_of(context, list, small_config, &error));
        CHECK_CONTAINS(error.message, label_table ? "y_embedder" : tensor->name);

        if (strcmp(tensor->name, "condition_projection.linear.weight") == 0) continue; /* any width is right */
        int64_t shape[GMEM_MAX_RANK];
        memcpy(shape, tensor->shape, sizeof shape);
        shape[tensor->rank - 1]++;
        list = edit_of(it.weights);
        edit_replace(list, tensor->name, tensor->type, tensor->rank, shape);
        if (!CHECK_STATUS(GMEM_E_SHAPE, status_of(context, list, small_config, &error)))
            printf("  %s: %s\n", tensor->name, error.message);
        CHECK_TEXT(error.path, "edited");
    }
    close_case(&it);
}

/* One tensor too many. */
static void test_strays(gmem_context *context) {
    static const struct {
        const char *name;
        int64_t size;
        gmem_status expected;
        const char *mentioned;
    } strays[] = {{"blocks.0.attn.rel_pos", 4, GMEM_E_ARCHITECTURE, "blocks.0.attn.rel_pos"},
                  {"y_embedder.embedding_table.weight", 4, GMEM_E_ARCHITECTURE, ""},
                  {"register_tokens", 4, GMEM_E_ARCHITECTURE, ""},
                  {"blocks.5.norm1.weight", 64, GMEM_E_MISSING_TENSOR, "blocks.3"},
                  {"blocks.99999999999999999999.norm1.weight", 64, GMEM_E_MISSING_TENSOR, ""},
                  {"pos_embed", 4096, GMEM_E_SHAPE, ""}};
    opened it = open_case(context, "dit_base");
    gmem_error error;
    for (size_t i = 0; i < sizeof strays / sizeof strays[0]; i++) {
        edit_list *list = edit_of(it.weights);
        add_zeros(list, strays[i].name, strays[i].size);
        if (!CHECK_STATUS(strays[i].expected, status_of(context, list, small_config, &error)))
            printf("  %s\n", strays[i].name);
        CHECK_CONTAINS(error.message, strays[i].mentioned);
    }
    close_case(&it);
}

static void test_malformed(gmem_context *context) {
    opened it = open_case(context, "dit_base");
    gmem_error error;
    const int64_t narrow[] = {192, 48}, vector[] = {12288};

    edit_list *list = edit_of(it.weights);
    edit_replace(list, "blocks.1.attn.qkv.weight", GMEM_F32, 2, narrow);
    CHECK_STATUS(GMEM_E_SHAPE, status_of(context, list, small_config, &error));
    CHECK_TEXT(error.message, "blocks.1.attn.qkv.weight: expected 192 x 64, found 192 x 48");

    list = edit_of(it.weights);
    edit_replace(list, "blocks.1.attn.qkv.weight", GMEM_F32, 1, vector);
    CHECK_STATUS(GMEM_E_SHAPE, status_of(context, list, small_config, &error));

    list = edit_of(it.weights);
    edit_find(list, "blocks.2.attn.proj.weight")->type = GMEM_I32;
    CHECK_STATUS(GMEM_E_TYPE, status_of(context, list, small_config, &error));

    /* Nothing tells the heads, or the size of the latent. */
    list = edit_of(it.weights);
    CHECK_STATUS(GMEM_E_HEADS, status_of(context, list, "{\\\"input_size\\\": 8}", &error));
    CHECK_CONTAINS(error.message, "--heads");
    list = edit_of(it.weights);
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, "{\\\"num_heads\\\": 4}", &error));
    list = edit_of(it.weights);
    CHECK_STATUS(GMEM_E_LIMIT, status_of(context, list, "{\\\"num_heads\\\": 4, \\\"input_size\\\": 60000}", &error));

    list = edit_of(it.weights);
    list->count = 0;
    add_zeros(list, "features", 4);
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_of(context, list, NULL, &error));
    close_case(&it);
}

/* The velocity of the case's inputs by the edited network, malloc'ed. */
static float *run_edited(gmem_context *context, const opened *it, edit_list *list) {
    gmem_network_desc desc;
    gmem_network *network = NULL;
    memset(&desc, 0, sizeof desc);
    edit_metadata(list, "config", small_config);
    desc.file = edit_open(context, list);
    CHECK_OK(gmem_network_open(context, &desc, &network, NULL));
    float *v = run(it, network);
    gmem_network_close(network);
    gmem_file_close(desc.file);
    return v;
}

/* NaN in a weight is found by the first pass. */
static void test_nan(gmem_context *context) {
    opened it = open_case(context, "dit_base");
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_pass *pass = NULL;
    gmem_error error;
    float *v = zeros(it.count);
    edit_list *list = edit_of(it.weights);
    gmem_tensor *tensor = edit_find(list, "blocks.1.mlp.w3.weight");
    int64_t count = gmem_tensor_count(tensor);
    float *values = (float *)edit_own(list, (size_t)count * sizeof *values);
    gmem_tensor_read_f32(tensor, 0, count, values);
    values[count / 2] = HUGE_VALF - HUGE_VALF;
    tensor->data = values;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    edit_metadata(list, "config", small_config);
    desc.file = edit_open(context, list);
    CHECK_OK(gmem_network_open(context, &desc, &network, NULL));
    CHECK_OK(gmem_pass_create(network, it.batch, &pass, NULL));
    CHECK_STATUS(GMEM_E_NONFINITE, gmem_pass_run(pass, it.batch, it.x, it.t, it.c, NULL, v, &error));
    CHECK_TEXT(error.path, "edited");
    CHECK(v[0] == 0 && v[it.count - 1] == 0);
    gmem_pass_destroy(pass);
    gmem_network_close(network);
    gmem_file_close(desc.file);
    edit_free(list);
    free(v);
    close_case(&it);
}

/* A tensor that only the file's own code could build. */
static void test_foreign(gmem_context *context) {
    static const char *const tensors[] = {"x_embedder.a", "t_embedder.a", "blocks.0.attn.a", "final_layer.a",
                                          "condition_projection.a"};
    static const char foreign[] = "blocks.0.adaLN_modulation.1.weight";
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    gmem_error error;
    gmem_file *file = NULL;
    gmem_network_desc desc;
    gmem_network *network = NULL;
    bytes_add(&pickle, "\x80\2}(", 4);
    for (size_t i = 0; i <= sizeof tensors / sizeof tensors[0]; i++) {
        int last = i == sizeof tensors / sizeof tensors[0];
        const char *name = last ? foreign : tensors[i];
        bytes_add(&pickle, "X", 1);
        bytes_number(&pickle, strlen(name), 4);
        bytes_add(&pickle, name, strlen(name));
        if (last) {
            bytes_add(&pickle, "cposix\nsystem\n)R", 16);
        } else {
            bytes_add(&pickle, P_TENSOR, sizeof(P_TENSOR) - 1);
        }
    }
    bytes_add(&pickle, "u.", 2);
    torch_zip(&image, pickle.data, pickle.size);
    memset(&error, 0, sizeof error);
    memset(&desc, 0, sizeof desc);
    if (!CHECK_OK(gmem_file_open_memory(context, "hostile", image.file.data, image.file.size, NULL, &file, &error)))
        printf("%s\n", error.message);
    desc.file = file;
    CHECK_STATUS(GMEM_E_FOREIGN, gmem_network_open(context, &desc, &network, &error));
    CHECK_CONTAINS(error.message, foreign);
    CHECK_CONTAINS(error.message, "posix.system");
    CHECK_TEXT(error.path, "hostile");
    gmem_file_close(file);
    bytes_free(&pickle);
    bytes_free(&image.file);
}

/* Weights in another type give what the same values give in f32. */
static void test_types(gmem_context *context, gmem_type type) {
    opened it = open_case(context, "dit_base");
    edit_list *stored = edit_of(it.weights), *rounded = edit_of(it.weights);
    for (int i = 0; i < stored->count; i++) {
        edit_round(stored, rounded, i, type);
    }
    float *v = run_edited(context, &it, stored), *expected = run_edited(context, &it, rounded);
    CHECK_CLOSE(gmem_type_name(type), v, expected, it.count, BAR);
    CHECK_CLOSE(gmem_type_name(type), v, it.y, it.count, type == GMEM_BF16 ? 3e-2 : type == GMEM_F16 ? 3e-3 : BAR);
    free(v);
    free(expected);
    edit_free(stored);
    edit_free(rounded);
    close_case(&it);
}

/* int8 rows times their scales give what the products give in f32. */
static void test_int8(gmem_context *context, const char *name) {
    opened it = open_case(context, name);
    edit_list *stored = edit_of(it.weights), *rounded = edit_of(it.weights);
    for (int i = 0, count = stored->count; i < count; i++) {
        if (stored->tensors[i].rank >= 2) edit_quantise(stored, rounded, i);
    }
    float *v = run_edited(context, &it, stored), *expected = run_edited(context, &it, rounded);
    CHECK_CLOSE(name, v, expected, it.count, BAR);
    CHECK_CLOSE(name, v, it.y, it.count, 5e-2);
    free(v);
    free(expected);
    edit_free(stored);
    edit_free(rounded);
    close_case(&it);
}

/* RoPE and the latent, where buffers and the configuration differ or are missing. */
static void test_rules(gmem_context *context) {
    opened it = open_case(context, "dit_base");
    gmem_network_desc desc;
    static const int64_t position[] = {1, 64, 64};
    static const struct {
        const char *config;
        int position;          /* with pos_embed, hence with all buffers that there are */
        int64_t height, width; /* asked for */
        int rope;
        int64_t tokens; /* expected */
    } rules[] = {{"{\\\"num_heads\\\": 4, \\\"input_size\\\": 8, \\\"use_rope\\\": false}", 0, 0, 0, 0, 64},
                 {"{\\\"num_heads\\\": 4, \\\"use_rope\\\": true}", 1, 0, 0, 1, 64},
                 {"{\\\"num_heads\\\": 4}", 1, 0, 0, 0, 64},
                 {"{\\\"num_heads\\\": 4}", 1, 4, 16, 0, 64},
                 {"{\\\"num_heads\\\": 4, \\\"input_size\\\": 8}", 0, 0, 0, 1, 64},
                 {"{\\\"model\\\": {\\\"num_heads\\\": 4, \\\"input_size\\\": 6}}", 0, 0, 0, 1, 36},
                 {"{\\\"num_heads\\\": 4}", 0, 6, 10, 1, 60},
                 {"{\\\"num_heads\\\": 4, \\\"input_size\\\": 8}", 0, 12, 0, 1, 144}};
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        edit_list *list = edit_of(it.weights);
        gmem_network *network = NULL;
        memset(&desc, 0, sizeof desc);
        if (rules[i].position) edit_add(list, "pos_embed", GMEM_F32, 3, position, NULL);
        edit_metadata(list, "config", rules[i].config);
        desc.file = edit_open(context, list);
        desc.latent_height = rules[i].height;
        desc.latent_width = rules[i].width;
        if (CHECK_OK(gmem_network_open(context, &desc, &network, NULL))) {
            CHECK_INT(gmem_network_get_info(network)->rope, rules[i].rope);
            CHECK_INT(gmem_network_get_info(network)->tokens, rules[i].tokens);
        }
        gmem_network_close(network);
        gmem_file_close(desc.file);
        edit_free(list);
    }
    close_case(&it);
}

/* SiT's time runs as REPA's where `projectors.*` are anywhere in the file. */
static void test_time(gmem_context *context) {
    opened it = open_case(context, "sit_plain");
    for (int elsewhere = 0; elsewhere < 2; elsewhere++) {
        gmem_network_desc desc;
        gmem_network *network = NULL;
        edit_list *list = edit_of(it.weights);
        int64_t one = 1;
        edit_drop_all(list, "projectors.");
        edit_prefix_all(list, "ema.");
        if (elsewhere) edit_add(list, "model.projectors.0.0.bias", GMEM_F32, 1, &one, NULL);
        edit_metadata(list, "config", small_config);
        memset(&desc, 0, sizeof desc);
        desc.file = edit_open(context, list);
        if (CHECK_OK(gmem_network_open(context, &desc, &network, NULL))) {
            CHECK_INT(gmem_network_get_info(network)->architecture, GMEM_ARCH_SIT);
            CHECK_INT(gmem_network_get_info(network)->time_reversed, elsewhere);
        }
        gmem_network_close(network);
        gmem_file_close(desc.file);
        edit_free(list);
    }
    close_case(&it);
}

/* failing allocations --------------------------------------------------------------------------------------------- */

typedef struct attempt {
    const opened *it;
    const edit_list *list; /* written */
    float *v;
} attempt;

static gmem_status open_and_run(gmem_context *context, void *user) {
    const attempt *a = (const attempt *)user;
    const opened *it = a->it;
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_pass *pass = NULL;
    memset(&desc, 0, sizeof desc);
    gmem_status status =
        gmem_file_open_memory(context, "edited", a->list->memory, a->list->bytes, NULL, &desc.file, NULL);
    if (status == GMEM_OK) status = gmem_network_open(context, &desc, &network, NULL);
    if (status == GMEM_OK) status = gmem_pass_create(network, it->batch, &pass, NULL);
    if (status == GMEM_OK) status = gmem_pass_prepare(pass, 1, it->t, it->batch, it->c, NULL, 1, NULL);
    if (status == GMEM_OK) status = gmem_pass_run(pass, it->batch, it->x, it->t, it->c, NULL, a->v, NULL);
    gmem_pass_destroy(pass);
    gmem_network_close(network);
    gmem_file_close(desc.file);
    return status;
}

static void test_allocations(gmem_context *context) {
    opened it = open_case(context, "dit_odd");
    edit_list *list = edit_of(it.weights);
    attempt a = {&it, list, zeros(it.count)};
    edit_metadata(list, "config", "{\\\"num_heads\\\": 3, \\\"input_size\\\": 6}");
    edit_write(list);
    check_failing_allocations(open_and_run, &a, 10);
    CHECK_CLOSE("after failed allocations", a.v, it.y, it.count, BAR);
    edit_free(list);
    free(a.v);
    close_case(&it);
}

/* What must hold on each instruction set. */
static void test_isa(gmem_isa isa) {
    gmem_context *context = golden_context(isa);
    if (!context) return;
    test_cases(context, isa);
    test_types(context, GMEM_F16);
    test_types(context, GMEM_BF16);
    test_types(context, GMEM_F64);
    test_int8(context, "dit_base");
    test_int8(context, "sit_plain");
    test_prepared(context, "dit_base");
    test_prepared(context, "sit_plain");
    test_batches(context, "dit_base");
    test_batches(context, "dit_odd");
    test_batches(context, "sit_qknorm");
    gmem_context_destroy(context);
}

int main(void) {
    for (int i = 0; i < golden_isa_count; i++) {
        test_isa(golden_isas[i]);
    }
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    test_checkpoints(context);
    test_info(context);
    test_null_condition(context);
    test_arguments(context);
    test_each_tensor(context, "dit_layernorm_qknorm");
    test_each_tensor(context, "dit_qknorm");
    test_each_tensor(context, "sit_plain");
    test_malformed(context);
    test_strays(context);
    test_foreign(context);
    test_nan(context);
    test_time(context);
    test_rules(context);
    test_allocations(context);
    gmem_context_destroy(context);
    return check_report();
}
