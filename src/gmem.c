/* The engine's parts in reading order: this list is the only one, for the amalgamation and for the build. */
#include "api.h"

#if defined(GMEM_IMPLEMENTATION) && !defined(GMEM__IMPLEMENTED)
#define GMEM__IMPLEMENTED

#include "internal.h"

/* from the file ... */
#include "error.c"
#include "memory.c"
#include "io.c"
#include "tensor.c"
#include "json.c"
#include "safetensors.c"
#include "names.c"
#include "pickle.c"
#include "zip.c"
#include "torch.c"
#include "file.c"
#include "save.c"
#include "weights.c"

/* ... through the operations ... */
#include "../backends/cpu/pack.c"
#include "../backends/cpu/scalar.c"
#include "../backends/cpu/scalar_rows.c"
#include "../backends/cpu/scalar_narrow.c"
#include "../backends/cpu/avx2.c"
#include "../backends/cpu/avx512.c"
#include "../backends/cpu/avx512_dots.c"
#include "../backends/cpu/avx2_dots.c"
#include "../backends/cpu/narrow_portable.c"
#include "../backends/cpu/amx.c"
#include "../backends/cpu/narrow_choose.c"
#include "../backends/cpu/drivers.c"
#include "../backends/cpu/host.c"
#include "../backends/cpu/cpu.c"
#include "../backends/cpu/narrow.c"
#include "../backends/opencl/none.c"
#include "context.c"
#include "engine.c"
#include "linear.c"

/* ... the models ... */
#include "recognise.c"
#include "network.c"
#include "fallback.c"
#include "cache.c"
#include "profile.c"
#include "pass.c"
#include "autoencoder.c"
#include "autoencoder_run.c"
#include "bank.c"
#include "bank_names.c"
#include "mix.c"

/* ... and the samplers, to the picture. */
#include "random.c"
#include "path.c"
#include "ode.c"
#include "multistep.c"
#include "sde.c"
#include "sampler.c"
#include "integrate.c"
#include "sample.c"
#include "generate.c"

#endif /* GMEM_IMPLEMENTATION */
