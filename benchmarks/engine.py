"""The engine on a GPU: output tokens a second, decode steps, and their share of what the memory bandwidth allows.

    python benchmarks/engine.py [--rows qwen-7b:16,qwen2.5-7b:256] [--no-generate] --out results/GPU-DATE.json

A row is a shape (random weights) and how many requests run at most. The load: four times as many requests, all there at
the start, prompts of 128 to 512 tokens (uniform, seeded), 256 output tokens each, temperature 0.7, no early stop. Each
row is the whole engine: scheduler, sampling, the copy of the tokens; no text. ``SHAPE:RUNNING:padded`` is the same on
dense batches through transformers' modules, with as many requests as run at once. For each shape: a prompt of 8,192
tokens by itself, and transformers' own ``generate``, one request at a time and one padded batch of 16.
``--first-token SHAPE`` measures the time from the start of a process to its first token, with nothing compiled before.

Copy bandwidth and the matrix peak are measured first, on the same GPU. A decode step's floor is the time in which the
copy's bandwidth moves the weights (the embedding's rows aside) and the KV that it reads.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

# this folder's scheduler.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from core.provenance import git_commit  # noqa: E402
from engine.executors import (  # noqa: E402
    build_executor,
    default_graphs,
    plan_memory,
    start_executor,
)
from engine.loop import EngineLoop  # noqa: E402
from engine.models import LoadedModel, load_model  # noqa: E402
from engine.parallel.loading import load_divided_model  # noqa: E402
from scheduler.config import SchedulerConfig  # noqa: E402
from scheduler.observer import Observer  # noqa: E402
from scheduler.plan import Layout, StepOutcome, StepPlan  # noqa: E402
from scheduler.request import Request, SamplingParams  # noqa: E402
from scheduler.scheduler import Scheduler  # noqa: E402
from scheduler.sequence import Sequence  # noqa: E402

ROWS = "qwen-7b:16,qwen-7b:16:padded,qwen-7b:128,qwen2.5-7b:16,qwen2.5-7b:256,qwen2.5-0.5b:16,qwen2.5-0.5b:256"
OUTPUT_TOKENS, SHORTEST, LONGEST = 256, 128, 512
CONTEXT_TOKENS = 2048
MOST_PREFILL_TOKENS = LONG_PROMPT = 8192


class Steps(Observer):
    """The device and host time of every step, and the context that it read."""

    def __init__(self) -> None:
        self.decodes: list[tuple[int, int, int, int]] = []
        self.prefills: list[tuple[int, int, int]] = []

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        features = plan.features
        if features.kind == "decode":
            self.decodes.append((features.rows, features.context_tokens, outcome.device_ns, outcome.host_ns))
        else:
            self.prefills.append((features.new_tokens, outcome.device_ns, outcome.host_ns))

    def ended(self, sequence: Sequence) -> None:
        pass

    def gaps(self, gaps_ns: Any, weight: int) -> None:
        pass


def timed_ms(work: Any, times: int = 20) -> float:
    """Median milliseconds of ``work`` on the GPU."""
    event: Any = torch.cuda.Event
    for _ in range(3):
        work()
    found = []
    for _ in range(times):
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return statistics.median(found)


def machine() -> dict[str, Any]:
    """What the GPU can do: bytes a second read and written by a copy, and bf16 products."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() / timed_ms(lambda: target.copy_(source)) / 1e9
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    peak = 2 * 8192**3 / timed_ms(lambda: a @ b) / 1e9
    return {"gpu": torch.cuda.get_device_name(), "copy_tb_s": round(copied, 3), "bf16_tflop_s": round(peak, 1),
            "torch": torch.__version__, "date": str(date.today()), "commit": git_commit()}  # fmt: skip


def requests(count: int, vocab: int, output_tokens: int = OUTPUT_TOKENS) -> list[Request]:
    rng = Random(0)
    found = []
    for place in range(count):
        length = rng.randint(SHORTEST, LONGEST)
        ids = tuple(rng.randrange(vocab) for _ in range(length))
        found.append(
            Request(f"r{place}", 0, length, output_tokens, output_tokens, prompt_token_ids=ids,
                    sampling=SamplingParams(temperature=0.7, ignore_eos=True))
        )  # fmt: skip
    return found


def serve(model: LoadedModel, running: int, gpu: dict[str, Any], layout: Layout = "paged") -> dict[str, Any]:
    """One row. On the padded layout, which is slow, as many requests as run at once."""
    began_s = time.perf_counter()
    config = SchedulerConfig(
        policy="fcfs", layout=layout, max_running=running, max_prefill_tokens=MOST_PREFILL_TOKENS, overlap=True,
        block_tokens=64, context_tokens=CONTEXT_TOKENS,
    )  # fmt: skip
    config = replace(config, **default_graphs(model, config)._asdict())
    memory = plan_memory(model, config)
    config = replace(config, kv_tokens=min(memory.kv_tokens, running * 1024))
    executor, config, memory = start_executor(model, config, memory)
    torch.cuda.synchronize()
    ready_s = time.perf_counter() - began_s
    work = requests(4 * running if layout == "paged" else running, model.vocab)
    steps = Steps()
    loop = EngineLoop(Scheduler(config, steps), executor, memory=memory)
    loop.run(requests(running, model.vocab, 4))
    steps.decodes.clear()
    steps.prefills.clear()
    work = [replace(request, arrival_ns=loop.now_ns()) for request in work]
    began_s = time.perf_counter()
    loop.run(work)
    wall_s = time.perf_counter() - began_s
    full = [step for step in steps.decodes if step[0] == running]
    step_ms = statistics.median(step[2] for step in full) / 1e6
    mean_context = statistics.fmean(step[1] for step in full)
    weights = model.parameters * model.dtype.itemsize
    if not model.model.config.tie_word_embeddings:
        weights -= model.vocab * model.hidden * model.dtype.itemsize
    tp = 1 if model.group is None else model.group.size
    weights /= tp
    floor_ms = (weights + mean_context * model.kv_bytes_per_token) / gpu["copy_tb_s"] / 1e9
    prefill_tokens, prefill_ms = sum(p[0] for p in steps.prefills), sum(p[1] for p in steps.prefills) / 1e6
    host = sum(step[3] for step in full)
    return {
        "shape": model.name,
        "layout": layout,
        "tp": tp,
        "running": running,
        "requests": len(work),
        "output_tok_s": round(len(work) * OUTPUT_TOKENS / wall_s, 1),
        "wall_s": round(wall_s, 2),
        "decode_step_ms": round(step_ms, 3),
        "decode_step_p99_ms": round(float(np.percentile([step[2] for step in full], 99)) / 1e6, 3),
        "floor_ms": round(floor_ms, 3),
        "share_of_floor": round(floor_ms / step_ms, 3),
        "idle_between_decodes": round(host / (host + sum(step[2] for step in full)), 4),
        "mean_context_tokens": round(mean_context / running, 1),
        "prefill_tok_s": round(prefill_tokens / prefill_ms * 1e3),
        "prefill_share_of_wall": round(prefill_ms / 1e3 / wall_s, 3),
        "memory": memory.as_dict(),
        "executor_ready_s": round(ready_s, 1),
        **(breakdown(loop, running, model.vocab) if layout == "paged" else {}),
    }


def breakdown(loop: EngineLoop, running: int, vocab: int) -> dict[str, Any]:
    """Milliseconds of kernels by kind: of all prompts of a full house, and of a decode step after them; and idle time.

    From the profiler, in a run of its own. Kernels that are launched before the one before has ended overlap with it,
    so that sums may be more than the step. ``gpu_idle`` is the share of the decode steps' time in which no kernel ran.
    """
    from torch.profiler import ProfilerActivity, profile

    found = []
    decodes = 32
    idle = 0.0
    for output_tokens in (1, decodes + 1):
        work = requests(running, vocab, output_tokens)
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            loop.run(work)
            torch.cuda.synchronize()
        kinds = dict.fromkeys(("products", "attention", "other"), 0.0)
        spans = []
        for event in profiler.events() or []:
            if "CUDA" in str(event.device_type):
                kinds[_kind(event.name)] += event.device_time_total / 1e3
                spans.append((event.time_range.start, event.time_range.end, event.name))
        found.append(kinds)
        idle = _idle(sorted(spans))
    prompts, both = found
    return {
        "prompts_kernel_ms": {kind: round(ms, 2) for kind, ms in prompts.items()},
        "decode_step_kernel_ms": {kind: round((both[kind] - ms) / decodes, 3) for kind, ms in prompts.items()},
        "gpu_idle": round(idle, 4),
    }


def _idle(spans: list[tuple[float, float, str]]) -> float:
    """The share of time in which nothing ran (begin, end, name; in order of begin), after the last prompt."""
    first = max((place for place, span in enumerate(spans) if "_prefill_kernel" in span[2]), default=0)
    # the step of the last prompt runs to its sampled token; what follows are decodes
    first = next((place for place in range(first, len(spans)) if "_decode_kernel" in spans[place][2]), first)
    begin = reached = spans[first][0]
    idle = 0.0
    for start, end, _ in spans[first:]:
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle / (reached - begin)


def _kind(kernel: str) -> str:
    name = kernel.lower()
    if any(word in name for word in ("skinny", "gemm", "nvjet", "cutlass", "cublas", "splitk")):
        return "products"
    return "attention" if "_decode_kernel" in name or "_prefill_kernel" in name else "other"


def prefill(model: LoadedModel, gpu: dict[str, Any]) -> dict[str, Any]:
    """A prompt of :data:`LONG_PROMPT` tokens by itself: milliseconds, and the share of the matrix peak."""
    config = SchedulerConfig(
        policy="fcfs", layout="paged", max_running=1, max_prefill_tokens=LONG_PROMPT, overlap=True, block_tokens=64,
        context_tokens=LONG_PROMPT + 64, kv_tokens=LONG_PROMPT + 128,
    )  # fmt: skip
    steps = Steps()
    loop = EngineLoop(Scheduler(config, steps), build_executor(model, config))
    rng = Random(1)
    for _ in range(8):
        ids = tuple(rng.randrange(model.vocab) for _ in range(LONG_PROMPT))
        loop.run([Request(f"p{rng.random()}", loop.now_ns(), LONG_PROMPT, 1, 1, prompt_token_ids=ids)])
    ms = statistics.median(step[1] for step in steps.prefills[2:]) / 1e6
    body = model.parameters - model.vocab * model.hidden * (1 if model.model.config.tie_word_embeddings else 2)
    attention = 2 * LONG_PROMPT**2 * model.layers * model.heads * model.head_dim
    flops = 2 * body * LONG_PROMPT + attention + 2 * model.vocab * model.hidden
    return {"shape": model.name, "prompt_tokens": LONG_PROMPT, "prefill_ms": round(ms, 2),
            "share_of_bf16_peak": round(flops / ms / 1e9 / gpu["bf16_tflop_s"], 3)}  # fmt: skip


def first_token(shape: str) -> None:
    """Load, prepare for 16 running requests, and serve one: what :func:`cold_start` runs in a process of its own."""
    model = load_model(f"shape:{shape}")
    config = SchedulerConfig(
        policy="fcfs", layout="paged", max_running=16, max_prefill_tokens=MOST_PREFILL_TOKENS, overlap=True,
        block_tokens=64, context_tokens=CONTEXT_TOKENS,
    )  # fmt: skip
    config = replace(config, **default_graphs(model, config)._asdict())
    memory = plan_memory(model, config)
    executor, config, _ = start_executor(model, replace(config, kv_tokens=memory.kv_tokens), memory)
    loop = EngineLoop(Scheduler(config), executor)
    loop.run(requests(1, model.vocab, 1))


def cold_start(shape: str) -> dict[str, Any]:
    """Seconds from the start of a process to its first token, with an empty cache of compiled kernels."""
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--one-token", shape], check=True,
                       env=os.environ | {"TRITON_CACHE_DIR": folder})  # fmt: skip
        return {"shape": f"shape:{shape}", "start_to_first_token_s": round(time.perf_counter() - began_s, 1)}


def generate(shape: str, batch: int) -> dict[str, Any]:
    """transformers' own, with its default attention: one padded batch of ``batch`` requests."""
    model = load_model(f"shape:{shape}", attention="sdpa")
    work = requests(batch, model.vocab)
    longest = max(request.prompt_tokens for request in work)
    ids = torch.zeros(batch, longest, dtype=torch.int64, device="cuda")
    mask = torch.zeros_like(ids)
    for row, request in enumerate(work):
        ids[row, longest - request.prompt_tokens :] = torch.tensor(request.prompt_token_ids)
        mask[row, longest - request.prompt_tokens :] = 1
    causal: Any = model.model
    began_s = time.perf_counter()
    causal.generate(ids, attention_mask=mask, max_new_tokens=OUTPUT_TOKENS, min_new_tokens=OUTPUT_TOKENS,
                    do_sample=True, temperature=0.7, top_k=0)  # fmt: skip
    torch.cuda.synchronize()
    wall_s = time.perf_counter() - began_s
    return {"shape": shape, "system": f"transformers generate, batch of {batch}",
            "output_tok_s": round(batch * OUTPUT_TOKENS / wall_s, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=ROWS, help=f"SHAPE:RUNNING[:padded], with commas between (default: {ROWS})")
    parser.add_argument("--no-generate", action="store_true", help="leave transformers' generate out")
    parser.add_argument("--first-token", metavar="SHAPE", help="measure the start of a process to its first token too")
    parser.add_argument("--one-token", metavar="SHAPE", help=argparse.SUPPRESS)
    parser.add_argument("--tp", type=int, default=1, help="GPUs that each model is divided over")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one_token:
        first_token(args.one_token)
        return
    kept: dict[str, Any] = {"machine": {}, "command": " ".join(["python", *sys.argv]), "rows": []}

    def keep(result: dict[str, Any]) -> None:
        """Print a result, and write it with those before it: a run that is cut short keeps what it has."""
        kept["rows"].append(result)
        print(json.dumps(result), flush=True)
        if args.out:
            args.out.write_text(json.dumps(kept, indent=1) + "\n")
        gc.collect()
        torch.cuda.empty_cache()

    if args.first_token:
        keep(cold_start(args.first_token))
    gpu = kept["machine"] = machine()
    print(json.dumps(gpu), flush=True)
    loaded: LoadedModel | None = None
    for row in args.rows.split(","):
        shape, running, *layout = row.split(":")
        if loaded is None or loaded.name != f"shape:{shape}":
            loaded = None
            gc.collect()
            torch.cuda.empty_cache()
            if not args.no_generate:
                for batch in (1, 16):
                    keep(generate(shape, batch))
            loaded = load_divided_model(f"shape:{shape}", args.tp)
            keep(prefill(loaded, gpu))
        keep(serve(loaded, int(running), gpu, *layout))


if __name__ == "__main__":
    main()
