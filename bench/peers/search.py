"""The ten nearest of a bank's rows by cosine, in gmem and in FAISS, on the same file: one query, 16 and 256 at once.

FAISS: IndexFlatIP (f32), IndexScalarQuantizer in f16, bf16 and 8 bits, and the last with f32 re-ranking (IndexRefineFlat).
Its rows are normalised beforehand, which is not counted; gmem takes the file as it is. Results are compared with exact
cosines before times are. gmem is timed before and after its peer, so that a machine that drifts shows.

    build/peers/bin/pip install -r bench/peers/requirements.txt
    build/gmem synth bank:1281167x768 -o build/bank.safetensors
    for type in f16 bf16 int8; do build/gmem convert build/bank.safetensors --dtype $type -o build/bank-$type.safetensors; done
    build/peers/bin/python bench/peers/search.py build/bank.safetensors

Other types of gmem's bank are taken from beside the file where they are: NAME-f16.safetensors and so on. The published size
takes 10 GB of memory.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("bank", help="a safetensors or .pth file of f32 rows")
parser.add_argument("--gmem", default="build/gmem")
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
parser.add_argument("--runs", type=int, default=5)
parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 256])
parser.add_argument("-o", "--output", help="write the lines as JSON")
arguments = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # read when the libraries are loaded

import faiss  # noqa: E402
import numpy  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

K = 10
CHUNK = 1 << 16


def chunks(path):
    """The rows in f32, normalised, some at a time."""
    if path.endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            name = next(name for name in ("features", "tensor", "memorybank") if name in file.keys())
            rows = file.get_slice(name)
            for first in range(0, rows.get_shape()[0], CHUNK):
                yield unit(rows[first : first + CHUNK].float().numpy())
        return
    rows = torch.load(path, mmap=True, weights_only=True)
    for first in range(0, rows.shape[0], CHUNK):
        yield unit(rows[first : first + CHUNK].float().numpy())


def unit(rows):
    return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)


def filled(index, path):
    for rows in chunks(path):
        if not index.is_trained:
            index.train(rows)
        index.add(rows)
    return index


def median_seconds(run):
    run()
    seconds = []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def recall(found, exact):
    """How many of the exact ten were found, of those whose cosines a rounding doesn't bring level."""
    return sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist())) / exact.size


def peer_lines(name, index, queries, exact):
    lines = []
    for count in arguments.counts:
        some = queries[:count]
        seconds = median_seconds(lambda: index.search(some, K))
        line = {"library": name, "queries": count, "seconds_median": seconds}
        line["recall"] = recall(index.search(some, K)[1], exact[:count])
        lines.append(show(line))
    return lines


def gmem_lines(path, rerank, queries, exact):
    """Times by `gmem bench bank`, whose queries are of the same kind; recall by `gmem bank search` on these."""
    name = "gmem " + os.path.basename(path) + (" and f32" if rerank else "")
    if not os.path.exists(path):
        return [show({"library": name, "failed": "no such file"})]
    common = ["--bank", path, *(["--rerank", rerank] if rerank else []), "-t", str(arguments.threads), "--json", "-q"]
    search = [arguments.gmem, "bank", "search", *common, "--input", queries, "-k", str(K)]
    results = json.loads(subprocess.run(search, capture_output=True, check=True).stdout)["results"]
    found = numpy.array([[match["row"] for match in result] for result in results])
    bench = [arguments.gmem, "bench", "bank", *common]
    report = json.loads(subprocess.run(bench, capture_output=True, check=True).stdout)
    kept = ("queries", "seconds_median", "fraction_of_bandwidth", "fraction_of_limit")
    lines = []
    for line in report["search"]:
        if line["queries"] in arguments.counts:
            exact_rows, found_rows = exact[: line["queries"]], found[: line["queries"]]
            lines.append({"library": name, **{key: line[key] for key in kept}, "recall": recall(found_rows, exact_rows)})
    return [show(line) for line in lines]


def show(line):
    if "failed" in line:
        print(f"{line['library']:<40}failed: {line['failed']}", flush=True)
        return line
    limits = f"  {line['fraction_of_limit']:.2f} of the limit" if "fraction_of_limit" in line else ""
    print(f"{line['library']:<40}{line['queries']:>4} queries {1e3 * line['seconds_median']:9.1f} ms"
          f"  recall@{K} {line['recall']:.4f}{limits}", flush=True)
    return line


def gmem_all(queries, exact):
    stem = os.path.splitext(arguments.bank)[0]
    types = [(arguments.bank, None)] + [(f"{stem}-{name}.safetensors", None) for name in ("f16", "bf16", "int8")]
    lines = []
    for path, rerank in types + [(f"{stem}-int8.safetensors", arguments.bank)]:
        lines += gmem_lines(path, rerank, queries, exact)
    return lines


def main():
    faiss.omp_set_num_threads(arguments.threads)
    flat = filled(faiss.IndexFlatIP(next(chunks(arguments.bank)).shape[1]), arguments.bank)
    chosen = (numpy.arange(max(arguments.counts)) * 7919 + 13) % flat.ntotal
    noise = numpy.random.default_rng(1).standard_normal((len(chosen), flat.d), dtype=numpy.float32)
    queries = unit(numpy.stack([flat.reconstruct(int(row)) for row in chosen]) + 0.015 * noise)
    exact = flat.search(queries, K)[1]
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "queries.safetensors")
        save_file({"query": queries}, file)
        lines = gmem_all(file, exact)
        lines += peer_lines("FAISS IndexFlatIP", flat, queries, exact)
        for name, kind in (("f16", "QT_fp16"), ("bf16", "QT_bf16"), ("8 bits", "QT_8bit")):
            quantiser = getattr(faiss.ScalarQuantizer, kind, None)
            if quantiser is None:
                continue
            index = faiss.IndexScalarQuantizer(flat.d, quantiser, faiss.METRIC_INNER_PRODUCT)
            filled(index, arguments.bank)
            lines += peer_lines(f"FAISS IndexScalarQuantizer {name}", index, queries, exact)
        refined = faiss.IndexRefine(index, flat)
        refined.k_factor = 10.4  # as many candidates as gmem takes
        lines += peer_lines("FAISS IndexRefine of 8 bits and f32", refined, queries, exact)
        lines += gmem_all(file, exact)
    if arguments.output:
        with open(arguments.output, "w") as out:
            json.dump({"faiss": faiss.__version__, "threads": arguments.threads, "lines": lines}, out, indent=1)


main()
