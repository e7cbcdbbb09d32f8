"""GPUs by name: what a roofline needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """Datasheet figures, and the share of them that serving engines are seen to reach.

    ``bandwidth`` in bytes/s, ``flops`` in dense 16-bit operations/s, ``memory`` in bytes. ``weight_efficiency`` is the
    share of the bandwidth at which a decode step reads weights, ``kv_efficiency`` at which it reads KV,
    ``compute_efficiency`` the share of ``flops`` that a prefill reaches. ``host_bandwidth`` is what the link to host
    memory carries each way, in bytes/s; copies from and to pinned memory reach ``host_efficiency`` of it.
    ``attention_efficiency`` is the share of ``flops`` that the attention of prompts reaches, ``None`` where it is taken
    to be that of the matrix products. ``devices`` are the names that CUDA calls it by.
    """

    name: str
    title: str
    memory: int
    bandwidth: float
    flops: float
    host_bandwidth: float
    weight_efficiency: float = 0.70
    kv_efficiency: float = 0.80
    compute_efficiency: float = 0.50
    host_efficiency: float = 0.87
    measured: str = "assumed shares of the datasheet"
    attention_efficiency: float | None = None
    devices: tuple[str, ...] = ()


#: a link of 16 PCIe lanes each way, in bytes/s, by generation: 8, 16 and 32 GT/s a lane in 128b/130b code (PCI-SIG base
#: specifications 3.0, 4.0 and 5.0); the datasheets quote both ways together, as 32, 64 and 128 GB/s. An H100 SXM
#: was measured to copy KV-sized pieces (8 to 256 MiB) at 55 of 63 GB/s either way: 0.87, taken for all.
_PCIE = {generation: 16 * rate * 1e9 * 128 / 130 / 8 for generation, rate in ((3, 8), (4, 16), (5, 32))}

_A100: Any = {
    "weight_efficiency": 0.64,
    "kv_efficiency": 0.90,
    "compute_efficiency": 0.44,
    "measured": "shares fitted to public per-operator measurements of an A100 80 GB (Llama-2-7B)",
}
_H100: Any = {
    "weight_efficiency": 0.78,
    "kv_efficiency": 0.80,
    "compute_efficiency": 0.55,
    "measured": "shares from library matrix products and paged attention measured on an H100 SXM",
}

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", "NVIDIA A100 40 GB PCIe", 40 << 30, 1.555e12, 312e12, _PCIE[4], **_A100,
            devices=("NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-40GB")),
        Gpu("a100-80gb", "NVIDIA A100 80 GB SXM", 80 << 30, 2.039e12, 312e12, _PCIE[4], **_A100,
            devices=("NVIDIA A100-SXM4-80GB",)),
        Gpu("a100-80gb-pcie", "NVIDIA A100 80 GB PCIe", 80 << 30, 1.935e12, 312e12, _PCIE[4], **_A100,
            devices=("NVIDIA A100 80GB PCIe",)),
        Gpu("h100", "NVIDIA H100 80 GB SXM", 80 << 30, 3.35e12, 989e12, _PCIE[5], **_H100,
            devices=("NVIDIA H100 80GB HBM3",)),
        Gpu("h100-pcie", "NVIDIA H100 80 GB PCIe", 80 << 30, 2.0e12, 756e12, _PCIE[5], **_H100,
            devices=("NVIDIA H100 PCIe",)),
        Gpu("h200", "NVIDIA H200 141 GB SXM", 141 << 30, 4.8e12, 989e12, _PCIE[5], **_H100,
            devices=("NVIDIA H200",)),
        Gpu("l40s", "NVIDIA L40S 48 GB", 48 << 30, 0.864e12, 362e12, _PCIE[4], devices=("NVIDIA L40S",)),
        Gpu("l4", "NVIDIA L4 24 GB", 24 << 30, 0.300e12, 121e12, _PCIE[4], devices=("NVIDIA L4",)),
        Gpu("a10g", "NVIDIA A10G 24 GB", 24 << 30, 0.600e12, 70e12, _PCIE[4], devices=("NVIDIA A10G",)),
        Gpu("t4", "NVIDIA T4 16 GB", 16 << 30, 0.320e12, 65e12, _PCIE[3], devices=("Tesla T4",)),
        Gpu("rtx-4090", "NVIDIA GeForce RTX 4090 24 GB", 24 << 30, 1.008e12, 165e12, _PCIE[4],
            devices=("NVIDIA GeForce RTX 4090",)),
    )
}  # fmt: skip


def gpu_of(hardware: str) -> Gpu | None:
    """The GPU that a manifest's ``hardware`` begins with, if it is one of :data:`GPUS`."""
    device = hardware.partition(",")[0].strip()
    return next((gpu for gpu in GPUS.values() if device in gpu.devices), None)
