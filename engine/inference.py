"""The front door: load a model, generate text for prompts, or stream it."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar, Unpack

import torch

from engine.assembly import assemble
from engine.executors import DEFAULT_UTILIZATION
from engine.loop import DEFAULT_POLICY, EngineLoop, TokenOutput
from engine.parallel.workers import Workers
from engine.results import GenerationResult, GenerationResults
from engine.serving import Serving, TaskMailbox, ThreadMailbox
from engine.streams import AsyncTokenStream, TokenStream
from scheduler.plan import Layout
from scheduler.request import Grammar, Request, SamplingParams
from scheduler.scheduler import Scheduler

#: a text, or its token ids
Prompt = str | Sequence[int]
Answer = TypeVar("Answer")


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; see :class:`~scheduler.request.SamplingParams`. Greedy unless ``temperature`` is given."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    grammar: Grammar | None
    logprobs: int | None


class InferenceEngine:
    """A model served by the scheduler, in this process.

    Args:
        model_path: a model folder, a Hugging Face name or ``shape:NAME``; the embedded model where it is left out.
        policy: name of the scheduling policy, ``fcfs`` by default; or a file of your own, ``FILE.yaml`` or
            ``FILE.py:NAME``.
        max_running: sequences that hold KV at the same time, at most.
        layout: ``paged`` computes no padding; ``padded`` is the plain dense batch.
        dtype: float32 on a CPU and bfloat16 on a GPU by default.
        device: the GPU by default, where there is one.
        tp: tensor parallelism: the GPUs that the model is divided over, from ``device`` on. Each of them but the first
            has a process of its own, which ends with :meth:`close`, or with this object.
        kv_tokens: KV memory in tokens; by default what ``max_running`` full contexts need, bounded by the memory.
        gpu_memory_utilization: the share of a GPU's memory that may be in use, what others use included.
        settings: any other field of :class:`~scheduler.config.SchedulerConfig`: the policy's own (``bucket``...), and
            the parts that go with any (``overlap=True``, ``phase="mixed"``, ``preemption="swap"``...).

    Raises:
        ModelError: the model cannot be found or run.
        RankError: the process of another GPU could not load its share.
        ConfigError: an unknown policy or setting, or one with an impossible value.
        DeviceMemoryError: the KV memory asked for, or one for a single full context, does not fit beside the rest.
        DeviceError: (of :meth:`generate` too) a device, or the process of one, has failed; no request is taken then.
        PolicyError: (of :meth:`generate` too) a policy of your own failed while it ran.

    One thread runs the steps, from here to :meth:`close`; all methods may be called from any thread, and the coroutines
    in any event loop. Requests join the steps and leave them at any time. Letting go of the engine closes it too, and
    so does the end of the interpreter, or of a ``with`` (``async with``) block.

    What the scheduler knows is read with :meth:`inspect`: it is the thread's own while the engine is open.
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        policy: str | None = None,
        *,
        max_running: int = 16,
        layout: Layout = "paged",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        tp: int = 1,
        kv_tokens: int | None = None,
        gpu_memory_utilization: float = DEFAULT_UTILIZATION,
        block_tokens: int = 16,
        **settings: Any,
    ) -> None:
        given = {"policy": policy or DEFAULT_POLICY, "max_running": max_running, "layout": layout,
                 "block_tokens": block_tokens, **settings}  # fmt: skip
        if kv_tokens is not None:
            given["kv_tokens"] = kv_tokens
        #: how the memory of the device is shared out; and the settings, with what a policy's file says by default
        self.model, self.config, executor, self.memory = assemble(
            model_path, given, dtype=dtype, device=device, tp=tp, gpu_memory_utilization=gpu_memory_utilization
        )
        self.scheduler = Scheduler(self.config)
        #: says what can never be served, to any thread
        self._limits = Scheduler(self.config)
        news: list[TokenOutput] = []
        self.loop = EngineLoop(
            self.scheduler,
            executor,
            tokenizer=self.model.tokenizer,
            end_token_ids=self.model.eos_token_ids,
            listener=news.append,
            memory=self.memory,
        )
        self._ids = itertools.count()
        workers = None if self.model.group is None else self.model.group.workers
        self._serving = Serving(self.loop, news, partial(_end, self.loop, workers))
        # it cannot wait for the end, since a collection of garbage may come in the middle of anything
        weakref.finalize(self, self._serving.stop).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the thread, and the processes of other GPUs, where there are any. More than once does nothing more.

        The step at hand is completed. Calls and streams that wait raise
        :class:`~engine.errors.EngineStoppedError`, as do later ones.
        """
        self._serving.close()

    # -- generating

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_tokens: int = 100,
        *,
        request_id: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> GenerationResults:
        """Generate at most ``max_tokens`` tokens for every prompt, together.

        A request that memory does not suffice for, or that was running when the device failed, ends with the finish
        reason ``error``; one that somebody aborted, with ``aborted``. An exception here (Ctrl-C) aborts all of them.

        ``request_id`` is the request's of one prompt; of several, ``ID-0``, ``ID-1``... are, and :meth:`abort` takes
        both. Without, the engine gives one.

        Raises:
            DeviceError: the device has failed before.
            EngineStoppedError: the engine has been closed, before or meanwhile.
            ValueError: a prompt is empty, longer than the model's context or than the KV memory, or is text where the
                model has no tokenizer; an id is in use; or the model cannot be sampled like that. Nothing is generated
                then.
        """
        name = self._name(request_id)
        requests, results = self._requests(prompts, name, max_tokens, sampling)
        mailbox = ThreadMailbox(name, list(results), piecewise=False)
        try:
            if requests:
                self._serving.submit(requests, mailbox)
                _fill(results, mailbox.get())
        finally:
            self._serving.leave(mailbox)
        return GenerationResults(list(results.values()))

    async def generate_async(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_tokens: int = 100,
        *,
        request_id: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> GenerationResults:
        """:meth:`generate` for a task, whose cancellation aborts the requests."""
        name = self._name(request_id)
        # long prompts take a while to be encoded
        requests, results = await asyncio.to_thread(self._requests, prompts, name, max_tokens, sampling)
        mailbox = TaskMailbox(name, list(results), piecewise=False)
        try:
            if requests:
                self._serving.submit(requests, mailbox)
                _fill(results, await mailbox.get())
        finally:
            self._serving.leave(mailbox)
        return GenerationResults(list(results.values()))

    def stream_generate(
        self,
        prompt: Prompt,
        max_tokens: int = 50,
        *,
        request_id: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> TokenStream:
        """Iterate over (token id, new text) as tokens come. A text may be empty: it is held back until it is whole.

        The request begins now, whether anybody reads or not. Closing the stream early, or letting go of it, aborts the
        request and frees its memory. The stream ends where somebody aborts the request; its ``result`` says so.

        Raises:
            DeviceError, EngineStoppedError, ValueError: as :meth:`generate`; at the call, not at the first token.
            GenerationError: (of the stream) the request could not go on, after the tokens that there are.
        """
        request, result = self._request(prompt, "the prompt", self._name(request_id), max_tokens, sampling)
        return TokenStream(self._serving, self, request, result)

    def stream_generate_async(
        self,
        prompt: Prompt,
        max_tokens: int = 50,
        *,
        request_id: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncTokenStream:
        """:meth:`stream_generate` for ``async for``. The request begins when the first token is asked for, and what is
        wrong with it is raised then. Cancellation of a task that waits for a token aborts the request.
        """
        name = self._name(request_id)
        make = partial(self._request, prompt, "the prompt", name, max_tokens, sampling)
        return AsyncTokenStream(self._serving, self, name, make)

    def abort(self, request_id: str) -> bool:
        """End a request early, or all of a call of that id, and free its memory with the next plan.

        Whoever waits gets what there is, with the finish reason ``aborted``. Returns whether there was anything to end:
        unknown ids, and those of requests that have ended, are ignored.
        """
        return self._serving.abort(request_id)

    def inspect(self, read: Callable[[Scheduler], Answer]) -> Answer:
        """What ``read`` says of the scheduler, or raises. It is called between two steps, and must be quick.

        Waits for the step at hand; a coroutine calls it by ``asyncio.to_thread``. Once the engine has been closed, or
        has failed, ``read`` sees what was left.
        """
        return self._serving.ask(partial(read, self.scheduler))

    # -- requests

    def _name(self, request_id: str | None) -> str:
        return f"generate-{next(self._ids)}" if request_id is None else request_id

    def _requests(
        self, prompts: Prompt | Sequence[Prompt], name: str, max_tokens: int, options: SamplingOptions
    ) -> tuple[list[Request], dict[str, GenerationResult]]:
        """The checked requests of a call, and their results, still empty, by id."""
        given = _prompt_list(prompts)
        made = [
            self._request(
                prompt, f"prompt {place}", name if len(given) == 1 else f"{name}-{place}", max_tokens, options
            )
            for place, prompt in enumerate(given)
        ]
        return [request for request, _ in made], {request.id: result for request, result in made}

    def _request(
        self, prompt: Prompt, what: str, request_id: str, max_tokens: int, options: SamplingOptions
    ) -> tuple[Request, GenerationResult]:
        """The checked request of a prompt, and its result, still empty."""
        text, token_ids = self._encoded(prompt, what)
        if len(token_ids) >= self.config.context_tokens:
            raise ValueError(
                f"{what} has {len(token_ids)} tokens; the model's context is {self.config.context_tokens}, which must "
                "hold the prompt and at least one token of output"
            )
        request = Request(
            id=request_id,
            arrival_ns=self.loop.now_ns(),
            prompt_tokens=len(token_ids),
            max_tokens=max_tokens,
            prompt_token_ids=tuple(token_ids),
            sampling=_sampling(options),
        )
        self.loop.check_sampling(request.sampling)
        refusal = self._limits.refusal(request)
        if refusal is not None:
            raise ValueError(f"{what} with max_tokens {max_tokens}: {refusal}; ask for less or raise kv_tokens")
        return request, GenerationResult(text, token_ids, request_id=request_id)

    def _encoded(self, prompt: Prompt, what: str) -> tuple[str, list[int]]:
        tokenizer = self.model.tokenizer
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError(f"{what} is text, but {self.model.name} has no tokenizer; give token ids")
            text, token_ids = prompt, tokenizer.encode(prompt) if prompt else []
        else:
            token_ids = list(prompt)
            bad = next((token_id for token_id in token_ids if not 0 <= token_id < self.model.vocab), None)
            if bad is not None:
                raise ValueError(f"{what} has token id {bad}; the model's ids go from 0 to {self.model.vocab - 1}")
            text = "" if tokenizer is None else tokenizer.decode(token_ids)
        if not token_ids:
            raise ValueError(f"{what} is empty; give at least one token")
        return text, token_ids


def _fill(results: dict[str, GenerationResult], outputs: list[TokenOutput]) -> None:
    for output in outputs:
        results[output.request_id].add(output)


def _end(loop: EngineLoop, workers: Workers | None) -> None:
    """End the threads and processes that steps were run with."""
    loop.executor.close()
    if workers is not None:
        workers.close()


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt (a text, or a list of token ids) or several, as a list."""
    if isinstance(prompts, str):
        return [prompts]
    given: list[Any] = list(prompts)
    return [given] if given and all(isinstance(item, int) for item in given) else given


def _sampling(options: SamplingOptions) -> SamplingParams:
    values: dict[str, Any] = dict(options)
    stop = values.get("stop", ())
    values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    values["stop_token_ids"] = tuple(values.get("stop_token_ids", ()))
    values["logit_bias"] = tuple(dict(values.get("logit_bias", ())).items())
    return SamplingParams(**values)
