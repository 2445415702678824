/* Writing checkpoints as torch.save does, for measuring and testing with: f32 tensors, streamed. */
#ifndef TORCH_FILE_H
#define TORCH_FILE_H

#include "report.h"

/* A setting of the network, as the checkpoint's `config` has it. */
typedef struct torch_setting {
    const char *name;
    int64_t value;
    int is_boolean;
} torch_setting;

typedef struct torch_content {
    const gmem_save_desc *tensors; /* contiguous f32, of data or filled in; its metadata is not used */
    int bare;                      /* the one tensor is the file's root; else a dictionary of all is */
    const char *key;               /* the dictionary lies in another one under this key; or NULL */
    const torch_setting *settings; /* (setting_count) of `config`, beside that key */
    int setting_count;
} torch_content;

/* The file appears complete or not at all. */
outcome torch_save(const char *path, const torch_content *content, gmem_error *error);

#endif /* TORCH_FILE_H */
