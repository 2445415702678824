/* gmem synth: models of the published sizes with procedural weights (procedural.h), to measure with and to test against
 * without a download. Streamed, so that size costs no memory. */
#include "commands.h"
#include "interrupt.h"
#include "procedural.h"
#include "procedural_bank.h"
#include "session.h"
#include "torch_file.h"

#include <stdlib.h>
#include <string.h>

typedef struct plan {
    gmem_tensor *tensors; /* without data; names owned */
    int64_t count, capacity;
    int failed;                /* out of memory */
    torch_setting settings[8]; /* what the configuration says */
    int setting_count;
    char config[512]; /* the same as JSON */
    char what[128];
    progress_bar bar;
    int64_t written, total; /* elements */
    procedural_bank bank;   /* where it is to be more than noise */
} plan;

/* rank first, then the shape: add(p, 2, 3 * h, h, 0, 0, "blocks.%d.attn.qkv.weight", i) */
static void add(plan *p, int rank, int64_t a, int64_t b, int64_t c, int64_t d, const char *format, int i, int j) {
    const int64_t shape[4] = {a, b, c, d};
    char name[128];
    if (p->count == p->capacity) {
        int64_t capacity = p->capacity ? 2 * p->capacity : 256;
        gmem_tensor *grown = (gmem_tensor *)realloc(p->tensors, (size_t)capacity * sizeof *grown);
        if (!grown) {
            p->failed = 1;
            return;
        }
        p->tensors = grown;
        p->capacity = capacity;
    }
    size_t length = (size_t)snprintf(name, sizeof name, format, i, j) + 1;
    char *copy = (char *)malloc(length);
    if (!copy) {
        p->failed = 1;
        return;
    }
    memcpy(copy, name, length);
    p->tensors[p->count++] = gmem_tensor_make(copy, GMEM_F32, rank, shape, NULL);
}

static void set(plan *p, const char *name, int64_t value, int is_boolean) {
    torch_setting *setting = &p->settings[p->setting_count++];
    setting->name = name;
    setting->value = value;
    setting->is_boolean = is_boolean;
}

/* NAME.weight (out, in) and NAME.bias (out); NAME may hold two numbers. */
static void linear(plan *p, int64_t out, int64_t in, const char *name, int i, int j) {
    char format[96];
    snprintf(format, sizeof format, "%s.weight", name);
    add(p, 2, out, in, 0, 0, format, i, j);
    snprintf(format, sizeof format, "%s.bias", name);
    add(p, 1, out, 0, 0, 0, format, i, j);
}

static void conv(plan *p, int64_t out, int64_t in, int64_t kernel, const char *name, int i, int j) {
    char format[96];
    snprintf(format, sizeof format, "%s.weight", name);
    add(p, 4, out, in, kernel, kernel, format, i, j);
    snprintf(format, sizeof format, "%s.bias", name);
    add(p, 1, out, 0, 0, 0, format, i, j);
}

static void norm(plan *p, int64_t width, const char *name, int i, int j) {
    char format[96];
    snprintf(format, sizeof format, "%s.weight", name);
    add(p, 1, width, 0, 0, 0, format, i, j);
    snprintf(format, sizeof format, "%s.bias", name);
    add(p, 1, width, 0, 0, 0, format, i, j);
}

/* transformers ---------------------------------------------------------------------------------------------------- */

typedef struct transformer_size {
    const char *name;
    int64_t hidden;
    int depth, heads;
} transformer_size;

/* SiT (2401.08740) has the first four, LightningDiT (2501.01423) all. */
static const transformer_size transformer_sizes[] = {{"s", 384, 12, 6},      {"b", 768, 12, 12},
                                                     {"l", 1024, 24, 16},    {"xl", 1152, 28, 16},
                                                     {"1.0b", 1536, 24, 24}, {"1.6b", 1792, 28, 28}};

#define SNIPPET_WIDTH 768  /* DINOv2 ViT-B's */
#define CLASSES       1000 /* ImageNet's */

static void lightning_block(plan *p, int64_t h, int i) {
    int64_t mlp = 8 * h / 3; /* int(2/3 * 4 h) */
    add(p, 1, h, 0, 0, 0, "blocks.%d.norm1.weight", i, 0);
    add(p, 1, h, 0, 0, 0, "blocks.%d.norm2.weight", i, 0);
    linear(p, 3 * h, h, "blocks.%d.attn.qkv", i, 0);
    linear(p, h, h, "blocks.%d.attn.proj", i, 0);
    linear(p, 2 * mlp, h, "blocks.%d.mlp.w12", i, 0);
    linear(p, h, mlp, "blocks.%d.mlp.w3", i, 0);
    linear(p, 6 * h, h, "blocks.%d.adaLN_modulation.1", i, 0);
}

static void sit_block(plan *p, int64_t h, int i) {
    linear(p, 3 * h, h, "blocks.%d.attn.qkv", i, 0);
    linear(p, h, h, "blocks.%d.attn.proj", i, 0);
    linear(p, 4 * h, h, "blocks.%d.mlp.fc1", i, 0);
    linear(p, h, 4 * h, "blocks.%d.mlp.fc2", i, 0);
    linear(p, 6 * h, h, "blocks.%d.adaLN_modulation.1", i, 0);
}

/* GMem on LightningDiT, or SiT. Patch 1 sees the VA-VAE's 32 x 16 x 16 latents, patch 2 the SD-VAE's 4 x 32 x 32: 256
 * tokens either way. */
static void transformer(plan *p, const transformer_size *size, int patch, int sit) {
    int64_t h = size->hidden, channels = patch == 1 ? 32 : 4, side = patch == 1 ? 16 : 32;
    conv(p, h, channels, patch, "x_embedder.proj", 0, 0);
    linear(p, h, 256, "t_embedder.mlp.0", 0, 0);
    linear(p, h, h, "t_embedder.mlp.2", 0, 0);
    if (sit) {
        add(p, 2, CLASSES + 1, h, 0, 0, "y_embedder.embedding_table.weight", 0, 0);
    } else {
        linear(p, h, SNIPPET_WIDTH, "condition_projection.linear", 0, 0);
    }
    for (int i = 0; i < size->depth; i++) {
        (sit ? sit_block : lightning_block)(p, h, i);
    }
    if (!sit) { /* used in training only, but the published files hold it */
        linear(p, 2048, h, "projector.0.0", 0, 0);
        linear(p, 2048, 2048, "projector.0.2", 0, 0);
        linear(p, SNIPPET_WIDTH, 2048, "projector.0.4", 0, 0);
        add(p, 1, h, 0, 0, 0, "final_layer.norm_final.weight", 0, 0);
    }
    linear(p, channels * patch * patch, h, "final_layer.linear", 0, 0);
    linear(p, 2 * h, h, "final_layer.adaLN_modulation.1", 0, 0);
    set(p, "input_size", side, 0);
    set(p, "patch_size", patch, 0);
    set(p, "in_channels", channels, 0);
    set(p, "hidden_size", h, 0);
    set(p, "depth", size->depth, 0);
    set(p, "num_heads", size->heads, 0);
    set(p, "use_rope", !sit, 1);
}

static int plan_transformer(plan *p, const char *arch) {
    int sit = strncmp(arch, "sit-", 4) == 0;
    const char *name = sit ? arch + 4 : arch, *slash = strchr(name, '/');
    if (!slash || (strcmp(slash, "/1") != 0 && strcmp(slash, "/2") != 0)) return 0;
    for (int i = 0; i < (sit ? 4 : 6); i++) {
        const transformer_size *size = &transformer_sizes[i];
        if (strlen(size->name) != (size_t)(slash - name) || strncmp(size->name, name, strlen(size->name)) != 0)
            continue;
        if (sit && slash[1] != '2') return 0;
        transformer(p, size, slash[1] - '0', sit);
        snprintf(p->what, sizeof p->what, "%s-%s/%c", sit ? "SiT" : "GMem on LightningDiT", size->name, slash[1]);
        return 1;
    }
    return 0;
}

/* DINOv2 ViT: 14 pixels a patch, positions for 518 x 518; with registers as `-reg`. */
static int plan_dinov2(plan *p, const char *arch) {
    static const transformer_size sizes[] = {
        {"dinov2-s/14", 384, 12, 6}, {"dinov2-b/14", 768, 12, 12}, {"dinov2-l/14", 1024, 24, 16}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const int64_t w = sizes[s].hidden, registers = 4;
        const size_t length = strlen(sizes[s].name);
        const int has_registers = strcmp(arch + (strncmp(arch, sizes[s].name, length) == 0 ? length : 0), "-reg") == 0;
        if (strcmp(arch, sizes[s].name) != 0 && !has_registers) continue;
        add(p, 3, 1, 1, w, 0, "cls_token", 0, 0);
        add(p, 3, 1, 37 * 37 + 1, w, 0, "pos_embed", 0, 0);
        if (has_registers) add(p, 3, 1, registers, w, 0, "register_tokens", 0, 0);
        add(p, 2, 1, w, 0, 0, "mask_token", 0, 0);
        conv(p, w, 3, 14, "patch_embed.proj", 0, 0);
        for (int i = 0; i < sizes[s].depth; i++) {
            norm(p, w, "blocks.%d.norm1", i, 0);
            linear(p, 3 * w, w, "blocks.%d.attn.qkv", i, 0);
            linear(p, w, w, "blocks.%d.attn.proj", i, 0);
            add(p, 1, w, 0, 0, 0, "blocks.%d.ls1.gamma", i, 0);
            norm(p, w, "blocks.%d.norm2", i, 0);
            linear(p, 4 * w, w, "blocks.%d.mlp.fc1", i, 0);
            linear(p, w, 4 * w, "blocks.%d.mlp.fc2", i, 0);
            add(p, 1, w, 0, 0, 0, "blocks.%d.ls2.gamma", i, 0);
        }
        norm(p, w, "norm", 0, 0);
        set(p, "embed_dim", w, 0);
        set(p, "depth", sizes[s].depth, 0);
        set(p, "num_heads", sizes[s].heads, 0);
        if (has_registers) set(p, "num_register_tokens", registers, 0);
        snprintf(p->what, sizeof p->what, "%s", arch);
        return 1;
    }
    return 0;
}

/* VA-VAE ---------------------------------------------------------------------------------------------------------- */

#define LEVELS 5
static const int64_t level_widths[LEVELS] = {128, 128, 256, 256, 512};

/* Names of a part are formed before its numbers: "encoder.down.%d.block.%d" + ".norm1". */
static void part(plan *p, void (*kind)(plan *, int64_t, const char *, int, int), int64_t width, const char *prefix,
                 const char *name, int i, int j) {
    char format[96];
    snprintf(format, sizeof format, "%s.%s", prefix, name);
    kind(p, width, format, i, j);
}

static void conv_part(plan *p, int64_t out, int64_t in, int64_t kernel, const char *prefix, const char *name, int i,
                      int j) {
    char format[96];
    snprintf(format, sizeof format, "%s.%s", prefix, name);
    conv(p, out, in, kernel, format, i, j);
}

static void residual_block(plan *p, int64_t in, int64_t out, const char *prefix, int i, int j) {
    part(p, norm, in, prefix, "norm1", i, j);
    conv_part(p, out, in, 3, prefix, "conv1", i, j);
    part(p, norm, out, prefix, "norm2", i, j);
    conv_part(p, out, out, 3, prefix, "conv2", i, j);
    if (in != out) conv_part(p, out, in, 1, prefix, "nin_shortcut", i, j);
}

static void attention(plan *p, int64_t width, const char *prefix, int i, int j) {
    static const char *const projections[] = {"q", "k", "v", "proj_out"};
    part(p, norm, width, prefix, "norm", i, j);
    for (int k = 0; k < 4; k++) {
        conv_part(p, width, width, 1, prefix, projections[k], i, j);
    }
}

static void middle(plan *p, int64_t width, const char *side) {
    char prefix[48];
    snprintf(prefix, sizeof prefix, "%s.mid.block_1", side);
    residual_block(p, width, width, prefix, 0, 0);
    snprintf(prefix, sizeof prefix, "%s.mid.attn_1", side);
    attention(p, width, prefix, 0, 0);
    snprintf(prefix, sizeof prefix, "%s.mid.block_2", side);
    residual_block(p, width, width, prefix, 0, 0);
}

/* Attention only at the coarsest level, after each of its blocks. */
static void attentions(plan *p, int level, int blocks, const char *prefix) {
    for (int j = 0; level == LEVELS - 1 && j < blocks; j++) {
        attention(p, level_widths[level], prefix, level, j);
    }
}

static void vavae_encoder(plan *p) {
    int64_t width = level_widths[0];
    conv(p, width, 3, 3, "encoder.conv_in", 0, 0);
    for (int level = 0; level < LEVELS; level++) {
        for (int j = 0; j < 2; j++) {
            residual_block(p, width, level_widths[level], "encoder.down.%d.block.%d", level, j);
            width = level_widths[level];
        }
        attentions(p, level, 2, "encoder.down.%d.attn.%d");
        if (level < LEVELS - 1) conv(p, width, width, 3, "encoder.down.%d.downsample.conv", level, 0);
    }
    middle(p, width, "encoder");
    norm(p, width, "encoder.norm_out", 0, 0);
    conv(p, 64, width, 3, "encoder.conv_out", 0, 0);
}

static void vavae_decoder(plan *p) {
    int64_t width = level_widths[LEVELS - 1];
    conv(p, width, 32, 3, "decoder.conv_in", 0, 0);
    middle(p, width, "decoder");
    for (int level = LEVELS - 1; level >= 0; level--) {
        for (int j = 0; j < 3; j++) {
            residual_block(p, width, level_widths[level], "decoder.up.%d.block.%d", level, j);
            width = level_widths[level];
        }
        attentions(p, level, 3, "decoder.up.%d.attn.%d");
        if (level > 0) conv(p, width, width, 3, "decoder.up.%d.upsample.conv", level, 0);
    }
    norm(p, width, "decoder.norm_out", 0, 0);
    conv(p, 3, width, 3, "decoder.conv_out", 0, 0);
}

static int plan_vavae(plan *p, const char *arch) {
    if (strcmp(arch, "vavae") != 0) return 0;
    vavae_encoder(p);
    vavae_decoder(p);
    conv(p, 64, 64, 1, "quant_conv", 0, 0);
    conv(p, 32, 32, 1, "post_quant_conv", 0, 0);
    snprintf(p->what, sizeof p->what, "VA-VAE f16d32");
    return 1;
}

/* bank:ROWSxWIDTH, bank:ROWSxWIDTH:DECAY ------------------------------------------------------------------------- */

static int plan_bank(plan *p, const char *arch) {
    char rows_text[24], width_text[24];
    int64_t rows, width;
    double decay = 0;
    const char *x = strchr(arch, 'x'), *colon = x ? strchr(x, ':') : NULL;
    if (strncmp(arch, "bank:", 5) != 0 || !x) return 0;
    snprintf(rows_text, sizeof rows_text, "%.*s", (int)(x - arch - 5), arch + 5);
    snprintf(width_text, sizeof width_text, "%.*s", (int)strcspn(x + 1, ":"), x + 1);
    if (!parse_integer(rows_text, 1, 1000000000, &rows) || !parse_integer(width_text, 1, 1 << 20, &width)) return 0;
    if (colon && (!parse_number(colon + 1, &decay) || decay < 0 || decay > 10)) return 0;
    if (colon && !procedural_bank_open(&p->bank, rows, width, decay)) p->failed = 1;
    add(p, 2, rows, width, 0, 0, "features", 0, 0);
    snprintf(p->what, sizeof p->what, "a bank of %lld rows of %lld%s%s", (long long)rows, (long long)width,
             colon ? ", decay " : "", colon ? colon + 1 : "");
    return 1;
}

/* writing --------------------------------------------------------------------------------------------------------- */

static gmem_status fill(void *user, int64_t index, int64_t first, int64_t count, void *out, gmem_error *error) {
    plan *p = (plan *)user;
    const gmem_tensor *t = &p->tensors[index];
    if (interrupt_check(error) != OUTCOME_DONE) return GMEM_E_CANCELLED;
    if (p->bank.weights) {
        procedural_bank_fill(&p->bank, first, count, (float *)out);
    } else {
        procedural_fill(t->name, t->rank, t->shape, first, count, (float *)out);
    }
    p->written += count;
    progress_show(&p->bar, p->written / 1000000, p->total / 1000000, "million weights");
    return GMEM_OK;
}

/* {"input_size": 16, ..., "use_rope": true}; nothing where there is no setting. */
static void print_config(plan *p) {
    size_t used = 0;
    for (int i = 0; i < p->setting_count; i++) {
        const torch_setting *setting = &p->settings[i];
        char value[24];
        snprintf(value, sizeof value, "%lld", (long long)setting->value);
        if (setting->is_boolean) snprintf(value, sizeof value, "%s", setting->value ? "true" : "false");
        used += (size_t)snprintf(p->config + used, sizeof p->config - used, "%s\"%s\": %s%s", i ? ", " : "{",
                                 setting->name, value, i + 1 < p->setting_count ? "" : "}");
    }
}

static int is_torch(const char *path) {
    size_t length = strlen(path);
    return length >= 4 && same_ignoring_case(path + length - 4, ".pth");
}

/* As published: a bank is the file's root, a transformer's weights are `ema` beside `config`. */
static outcome write_torch(const plan *p, const char *path, const gmem_save_desc *desc, gmem_error *error) {
    torch_content content;
    memset(&content, 0, sizeof content);
    content.tensors = desc;
    content.bare = p->count == 1;
    content.key = p->setting_count ? "ema" : NULL;
    content.settings = p->settings;
    content.setting_count = p->setting_count;
    return torch_save(path, &content, error);
}

static outcome synthesise(session *s, plan *p, const arguments *args, gmem_error *error) {
    gmem_save_desc desc;
    const char *metadata[] = {"backend", "", "dtype", "f32", "gmem", gmem_version(), "config", p->config};
    const char *arch = args->operands.items[0];
    char lower[64], plain[64], what[256];
    memset(&desc, 0, sizeof desc);
    if (!args->output) return misused(error, "gmem synth needs -o FILE");
    snprintf(lower, sizeof lower, "%s", arch);
    for (char *c = lower; *c; c++) {
        if (*c >= 'A' && *c <= 'Z') *c = (char)(*c - 'A' + 'a');
    }
    if (!plan_transformer(p, lower) && !plan_dinov2(p, lower) && !plan_vavae(p, lower) && !plan_bank(p, lower))
        return misused(
            error,
            "unknown architecture '%s': expected s/1, b/1, l/1, xl/1, 1.0b/1 or 1.6b/1, the same with /2, "
            "sit-s/2 to sit-xl/2, vavae, dinov2-s/14, -b/14 or -l/14, the same with -reg, or bank:ROWSxWIDTH[:DECAY]",
            gmem_escape(arch, plain, sizeof plain));
    if (p->failed) return out_of_memory(error);
    print_config(p);
    TRY(session_begin(s, args, error));
    metadata[1] = gmem_context_backend(s->context);
    for (int64_t i = 0; i < p->count; i++) {
        p->total += gmem_tensor_count(&p->tensors[i]);
    }
    desc.tensors = p->tensors;
    desc.count = p->count;
    desc.metadata = metadata;
    desc.metadata_count = p->config[0] ? 4 : 3;
    desc.fill = fill;
    desc.fill_user = p;
    progress_begin(&p->bar);
    outcome result = is_torch(args->output) ? write_torch(p, args->output, &desc, error)
                                            : from_status(gmem_save(s->context, args->output, &desc, error));
    progress_end(&p->bar);
    TRY(result);
    snprintf(what, sizeof what, "%s, %lld weights", p->what, (long long)p->total);
    say_written(args, args->output, what);
    return OUTCOME_DONE;
}

outcome command_synth(const arguments *args, gmem_error *error) {
    session s;
    plan p;
    memset(&s, 0, sizeof s);
    memset(&p, 0, sizeof p);
    outcome result = synthesise(&s, &p, args, error);
    session_end(&s);
    for (int64_t i = 0; i < p.count; i++) {
        free((void *)(uintptr_t)p.tensors[i].name);
    }
    free(p.tensors);
    procedural_bank_close(&p.bank);
    return result;
}
