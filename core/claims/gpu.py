"""What a GPU did while a run went: how busy its processors were (NVML), and when no kernel ran (the profiler).

Both need a GPU; where there is none, or where its driver does not tell, figures are absent with the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: NVML's numbers of GPU performance metrics, and the figures that they are; percentages (Hopper and later)
GPM_METRICS = {"sm_activity": 2, "sm_occupancy": 3}
SAMPLED = (*GPM_METRICS, "gpu_busy")
PROFILED = ("gpu_idle", "gpu_idle_s", "gpu_running")
NO_GPU = "there is no GPU here"
#: utilisation is read this often; NVML itself looks 6 to 60 times a second
_EVERY_S = 0.1


class Watch(AbstractContextManager["Watch"]):
    """What is around a run: ``figures`` are there after it, ``absent`` says why others are not."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.absent: dict[str, str] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Blind(Watch):
    """Sees nothing, for a reason."""

    def __init__(self, names: Iterable[str], reason: str) -> None:
        super().__init__()
        self.absent = dict.fromkeys(names, reason)


class Counters(Watch):
    """SM activity and occupancy of the whole run from two samples of the GPU's counters, and the mean of NVML's
    utilisation."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._nvml: Any = None
        self._handle: Any = None
        self._samples: list[Any] = []
        self._done = threading.Event()
        #: set once the utilisation has been read
        self.looked = threading.Event()
        self._busy: list[float] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Counters:
        try:
            import pynvml
        except ImportError:
            self.absent = dict.fromkeys(SAMPLED, "it needs nvidia-ml-py: pip install 'lockstep[gpu]'")
            return self
        try:
            pynvml.nvmlInit()
            self._nvml, self._handle = pynvml, _handle(pynvml, self._device)
        except Exception as error:  # whatever the driver lacks: the run itself goes on
            self.absent = dict.fromkeys(SAMPLED, f"NVML is not to be had: {_line(error)}")
            return self
        self._sample()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is None:
            return
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()
        self._read_metrics()
        if self._busy:
            self.figures["gpu_busy"] = sum(self._busy) / len(self._busy) / 100
        else:
            self.absent["gpu_busy"] = "NVML gave no utilisation"
        with suppress(Exception):
            for sample in self._samples:
                self._nvml.nvmlGpmSampleFree(sample)
            self._nvml.nvmlShutdown()

    def _sample(self) -> None:
        """Take a sample of the counters, if the GPU has any."""
        nvml = self._nvml
        try:
            if not nvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice:
                raise RuntimeError("this GPU has no GPM counters, which came with Hopper")
            sample = nvml.nvmlGpmSampleAlloc()
            nvml.nvmlGpmSampleGet(self._handle, sample)
            self._samples.append(sample)
        except Exception as error:
            self.absent |= dict.fromkeys(GPM_METRICS, f"no GPM counters: {_line(error)}")

    def _read_metrics(self) -> None:
        if len(self._samples) < 2:
            return
        nvml = self._nvml
        try:
            asked = nvml.c_nvmlGpmMetricsGet_t()
            asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
            asked.numMetrics = len(GPM_METRICS)
            asked.sample1, asked.sample2 = self._samples
            for place, metric in enumerate(GPM_METRICS.values()):
                asked.metrics[place].metricId = metric
            nvml.nvmlGpmMetricsGet(asked)
            for place, name in enumerate(GPM_METRICS):
                if asked.metrics[place].nvmlReturn:
                    self.absent[name] = f"NVML returned {asked.metrics[place].nvmlReturn}"
                else:
                    self.figures[name] = float(asked.metrics[place].value) / 100
        except Exception as error:
            self.absent |= dict.fromkeys(GPM_METRICS, f"no GPM counters: {_line(error)}")

    def _poll(self) -> None:
        while not self._done.wait(_EVERY_S):
            with suppress(Exception):
                self._busy.append(float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu))
                self.looked.set()


class Kernels(Watch):
    """When kernels ran, by torch's profiler, which makes launching them slower: for a run of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._profile: Any = None

    def __enter__(self) -> Kernels:
        from torch.profiler import ProfilerActivity, profile

        try:
            self._profile = profile(activities=[ProfilerActivity.CUDA], acc_events=True)
            self._profile.__enter__()
        except Exception as error:
            self._profile = None
            self.absent = dict.fromkeys(PROFILED, f"the profiler does not start: {_line(error)}")
        return self

    def __exit__(self, *exits: Any) -> None:
        if self._profile is None:
            return
        import torch

        torch.cuda.synchronize()
        try:
            self._profile.__exit__(*exits)
            events = self._profile.profiler.kineto_results.events()
            kernels = [
                (event.start_ns(), event.start_ns() + event.duration_ns())
                for event in events
                if event.device_type().name == "CUDA" and not event.name().startswith(("Memcpy", "Memset"))
            ]
        except Exception as error:
            self.absent = dict.fromkeys(PROFILED, f"the profiler gave nothing: {_line(error)}")
            return
        if kernels:
            self.figures = idle_figures(kernels)
        else:
            self.absent = dict.fromkeys(PROFILED, "the profiler saw no kernel")


def idle_figures(kernels: Iterable[tuple[int, int]]) -> dict[str, float]:
    """From starts and ends of kernels in ns, which may overlap: the share of the time from the first start to the last
    end in which none ran, those seconds, and the rest."""
    ordered = sorted(kernels)
    first, reached = ordered[0]
    running = 0
    begin = first
    for start, end in ordered[1:]:
        if start > reached:
            running += reached - begin
            begin, reached = start, end
        else:
            reached = max(reached, end)
    running += reached - begin
    whole = reached - first
    idle = whole - running
    return {"gpu_idle": idle / whole, "gpu_idle_s": idle / 1e9, "gpu_running": running / whole}


def watch_of(device: torch.device, profiled: bool) -> Watch:
    """What watches a run on ``device``."""
    if device.type != "cuda":
        return Blind(PROFILED if profiled else SAMPLED, NO_GPU)
    return Kernels() if profiled else Counters(device)


def _handle(nvml: Any, device: torch.device) -> Any:
    """NVML's handle of the GPU, which numbers them otherwise than CUDA does."""
    import torch

    place = torch.cuda.current_device() if device.index is None else device.index
    uuid = getattr(torch.cuda.get_device_properties(place), "uuid", None)
    if uuid is not None:
        with suppress(Exception):
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(place)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
