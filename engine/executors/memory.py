"""How much KV memory an executor gets when nobody says."""

from __future__ import annotations

import torch

from engine.models import LoadedModel

#: KV memory on a CPU
CPU_KV_BYTES = 2 << 30
#: share of a GPU's free memory, after the weights are loaded, that KV takes; the rest is for activations
GPU_FREE_SHARE = 0.85


def default_kv_tokens(model: LoadedModel, max_running: int, block_tokens: int) -> int:
    """KV tokens, in whole blocks: enough for ``max_running`` sequences of full context, or what memory allows.

    Of a model that is divided, each GPU holds its heads of every token; the one with the least memory decides.
    """
    if model.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(model.device)
        if model.group is not None and model.group.workers is not None:
            free_bytes = min(free_bytes, model.group.workers.free_bytes())
        budget = int(free_bytes * GPU_FREE_SHARE)
    else:
        budget = CPU_KV_BYTES
    wanted = -(-model.context_tokens // block_tokens) * block_tokens * max_running
    return max(block_tokens, min(wanted, budget // model.kv_bytes_per_token // block_tokens * block_tokens))
