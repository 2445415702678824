"""One way to run one model, timed; prints a JSON line. compare.py starts one of these for each row of its table, since
a compiler that is missing or a process that hangs must cost a row and not the run."""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("work", choices=["network", "autoencoder"])
parser.add_argument("how", choices=["eager", "compile", "freezing", "openvino"])
parser.add_argument("dtype", choices=["f32", "bf16"])
parser.add_argument("model")
parser.add_argument("expected", help="a safetensors file with gmem's own result, to be compared before anything is timed")
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--seconds", type=float, default=10, help="how long to repeat it, at least three times")
arguments = parser.parse_args()
if arguments.how == "freezing":
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"  # read when inductor is imported

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import models  # noqa: E402


def openvino_function(model, inputs):
    import openvino

    converted = openvino.convert_model(model, example_input=tuple(inputs))
    config = {
        "INFERENCE_PRECISION_HINT": arguments.dtype,
        "INFERENCE_NUM_THREADS": arguments.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(converted, "CPU", config)
    arrays = [tensor.numpy() for tensor in inputs]
    return lambda: torch.from_numpy(compiled(arrays)[0])


def torch_function(model, inputs):
    if arguments.dtype == "bf16":
        model = model.to(torch.bfloat16)
        inputs = [tensor.to(torch.bfloat16) for tensor in inputs]
    if arguments.how != "eager":
        model = torch.compile(model)
    return lambda: model(*inputs)


def main():
    torch.set_num_threads(arguments.threads)
    model, inputs = models.load(arguments.work, arguments.model)
    expected = next(iter(load_file(arguments.expected).values())).float()
    with torch.no_grad():
        make = openvino_function if arguments.how == "openvino" else torch_function
        run = make(model, list(inputs.values()))
        start = time.perf_counter()
        result = run().float()
        first = time.perf_counter() - start
        error = ((result - expected).norm() / expected.norm()).item()
        if not error < {"f32": 1e-4, "bf16": 1e-1}[arguments.dtype]:
            raise SystemExit(f"the outputs differ by {error:.2e}")
        run()
        seconds, begun = [], time.perf_counter()
        while len(seconds) < 3 or time.perf_counter() - begun < arguments.seconds:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    seconds.sort()
    version = torch.__version__
    if arguments.how == "openvino":
        import openvino

        version = openvino.__version__
    report = {"median": seconds[len(seconds) // 2], "min": seconds[0], "max": seconds[-1], "first": first}
    print(json.dumps({**report, "runs": len(seconds), "error": error, "version": version}))


main()
