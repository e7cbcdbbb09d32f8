"""The front door: load a model, generate text for prompts, or stream it."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch

from engine.errors import DeviceError, GenerationError
from engine.executors import (
    DEFAULT_UTILIZATION,
    default_graph_rows,
    default_graph_tokens,
    plan_memory,
    start_executor,
)
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel
from engine.parallel.loading import load_divided_model
from engine.sampling import TokenLogprobs
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.plan import Layout
from scheduler.request import Grammar, Request, SamplingParams
from scheduler.scheduler import Scheduler

DEFAULT_POLICY = "sjf-bucket"

#: a text, or its token ids
Prompt = str | Sequence[int]


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


@dataclass(eq=False)
class GenerationResult:
    """What came of one prompt. ``token_ids`` are the output's, an end token included; ``text`` has none of that.

    ``finish_reason`` is ``length`` (``max_tokens`` or the model's context), ``eos`` (the model's end token), ``stop``,
    or ``error``: the request could not go on, ``error`` says why, and the output is what there was until then.
    ``logprobs``, where they were asked for, has an entry for each token.
    """

    prompt: str
    prompt_token_ids: list[int] = field(repr=False)
    text: str = ""
    token_ids: list[int] = field(default_factory=list, repr=False)
    finish_reason: str = ""
    error: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list, repr=False)


class GenerationResults:
    """Results in the order of their prompts. ``items()`` gives (result, text); equal prompts have a result each."""

    def __init__(self, results: list[GenerationResult]) -> None:
        self._results = results

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[GenerationResult]:
        return iter(self._results)

    @overload
    def __getitem__(self, key: int) -> GenerationResult: ...

    @overload
    def __getitem__(self, key: GenerationResult) -> str: ...

    def __getitem__(self, key: int | GenerationResult) -> GenerationResult | str:
        """The result at a place in the order of the prompts, or the text of a result."""
        return key.text if isinstance(key, GenerationResult) else self._results[key]

    def keys(self) -> list[GenerationResult]:
        return list(self._results)

    def values(self) -> list[str]:
        return [result.text for result in self._results]

    def items(self) -> list[tuple[GenerationResult, str]]:
        return [(result, result.text) for result in self._results]


class InferenceEngine:
    """A model served by the scheduler, in this process.

    Args:
        model_path: a model folder, a Hugging Face name or ``shape:NAME``; the embedded model where it is left out.
        policy: name of the scheduling policy, ``sjf-bucket`` by default; or a file of your own, ``FILE.yaml`` or
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

    Calls from several threads share the steps: whoever waits for a token runs the next one for all.
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
        Scheduler(SchedulerConfig.from_dict(given))  # a bad setting shows before a model is loaded
        if tp != 1 and layout != "paged":
            raise ConfigError(f"tp {tp} needs the paged layout; layout is {layout!r}")
        self.model: LoadedModel = load_divided_model(model_path, tp, dtype=dtype, device=device)
        given.setdefault("context_tokens", self.model.context_tokens)
        most_rows = min(max_running, given.get("max_rows") or max_running)
        most_tokens = given.get("max_prefill_tokens") or SchedulerConfig.max_prefill_tokens
        given.setdefault("graph_rows", default_graph_rows(self.model, layout, most_rows))
        given.setdefault("graph_tokens", default_graph_tokens(self.model, layout, most_tokens))
        limits = Scheduler(SchedulerConfig.from_dict(given)).config
        memory = plan_memory(self.model, limits, utilization=gpu_memory_utilization, kv_tokens=kv_tokens)
        limits = Scheduler(SchedulerConfig.from_dict({**given, "kv_tokens": memory.kv_tokens})).config
        #: how the memory of the device is shared out; and the settings, with what a policy's file says by default
        executor, self.config, self.memory = start_executor(self.model, limits, memory)
        self.scheduler = Scheduler(self.config)
        self.loop = EngineLoop(
            self.scheduler,
            executor,
            tokenizer=self.model.tokenizer,
            end_token_ids=self.model.eos_token_ids,
            listener=self._hear,
            memory=self.memory,
        )
        self._ids = itertools.count()
        self._stepping = threading.Lock()
        self._heard: dict[str, deque[TokenOutput]] = {}

    def close(self) -> None:
        """End the processes of the other GPUs, where there are any. Nothing can be generated any more then."""
        if self.model.group is not None and self.model.group.workers is not None:
            self.model.group.workers.close()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], max_tokens: int = 100, **sampling: Unpack[SamplingOptions]
    ) -> GenerationResults:
        """Generate at most ``max_tokens`` tokens for every prompt, together.

        A request that memory does not suffice for, or that was running when the device failed, ends with the finish
        reason ``error``.

        Raises:
            DeviceError: the device has failed before.
            ValueError: a prompt is empty, longer than the model's context or than the KV memory, or is text where the
                model has no tokenizer; or the model cannot be sampled like that. Nothing is generated then.
        """
        requests = [
            self._request(prompt, f"prompt {place}", max_tokens, sampling)
            for place, prompt in enumerate(_prompt_list(prompts))
        ]
        results = [GenerationResult(text, list(request.prompt_token_ids or ())) for text, request in requests]
        try:
            for _, request in requests:
                self._submit(request)
            for (_, request), result in zip(requests, results, strict=True):
                for output in self._outputs(request.id):
                    if output.token_id is not None:
                        result.token_ids.append(output.token_id)
                    if output.logprobs is not None:
                        result.logprobs.append(output.logprobs)
                    result.text += output.text
                    result.finish_reason = output.finish_reason
                    result.error = output.detail
        finally:
            for _, request in requests:
                self._leave(request.id)
        return GenerationResults(results)

    def stream_generate(
        self, prompt: Prompt, max_tokens: int = 50, **sampling: Unpack[SamplingOptions]
    ) -> Generator[tuple[int, str], None, None]:
        """Yield (token id, new text) as tokens come. A text may be empty: it is held back until it is whole.

        Closing the iterator early aborts the request and frees its memory.

        Raises:
            ValueError: as :meth:`generate`; at the call, not at the first token.
            GenerationError: the request could not go on, after the tokens that there are.
        """
        _, request = self._request(prompt, "the prompt", max_tokens, sampling)
        return self._stream(request)

    def _stream(self, request: Request) -> Generator[tuple[int, str], None, None]:
        try:
            self._submit(request)
            for output in self._outputs(request.id):
                if output.token_id is not None:
                    yield output.token_id, output.text
                if output.finish_reason == "error":
                    raise GenerationError(output.detail)
        finally:
            self._leave(request.id)

    def _request(self, prompt: Prompt, what: str, max_tokens: int, options: SamplingOptions) -> tuple[str, Request]:
        """The text of a prompt and its checked request."""
        text, token_ids = self._encoded(prompt, what)
        if len(token_ids) >= self.config.context_tokens:
            raise ValueError(
                f"{what} has {len(token_ids)} tokens; the model's context is {self.config.context_tokens}, which must "
                "hold the prompt and at least one token of output"
            )
        request = Request(
            id=f"generate-{next(self._ids)}",
            arrival_ns=self.loop.now_ns(),
            prompt_tokens=len(token_ids),
            max_tokens=max_tokens,
            prompt_token_ids=tuple(token_ids),
            sampling=_sampling(options),
        )
        self.loop.check_sampling(request.sampling)
        refusal = self.scheduler.refusal(request)
        if refusal is not None:
            raise ValueError(f"{what} with max_tokens {max_tokens}: {refusal}; ask for less or raise kv_tokens")
        return text, request

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

    # -- the loop, shared by all calls

    def _hear(self, output: TokenOutput) -> None:
        heard = self._heard.get(output.request_id)
        if heard is not None:
            heard.append(output)

    def _submit(self, request: Request) -> None:
        self._heard[request.id] = deque()
        self.loop.submit(request)

    def _outputs(self, request_id: str) -> Iterator[TokenOutput]:
        """News of a request, to its end; runs the loop whenever there is none yet."""
        heard = self._heard[request_id]
        while True:
            while not heard:
                with self._stepping:
                    if not heard:
                        self._step(heard)
            output = heard.popleft()
            yield output
            if output.finish_reason:
                del self._heard[request_id]
                return

    def _step(self, heard: deque[TokenOutput]) -> None:
        """Run the loop's next step, or wait until there may be one. That the device has failed is news of everybody."""
        try:
            if not self.loop.step():
                self.loop.wait()
        except DeviceError:
            if not heard:
                raise

    def _leave(self, request_id: str) -> None:
        """Abort a request that has not ended, and free its memory now. Nothing is left running for nobody."""
        with suppress(DeviceError):
            if self._heard.pop(request_id, None) is not None:
                self.loop.abort(request_id)
                with self._stepping:
                    self.loop.step()
            while not self._heard and self.loop.in_flight:
                with self._stepping:
                    self.loop.step()


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
