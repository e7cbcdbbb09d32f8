"""What memory loading a checkpoint takes, in a process of its own: ``loading_memory.py FOLDER DTYPE...``.

Prints a line of JSON for each dtype: bytes of the weights, and by how much anonymous memory (what no file stands
behind) and all resident memory grew at most. For the dtype ``all-at-once`` it does what must not be done: read
everything, then convert everything to float32.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama  # noqa: F401  (so that it is not among what grows)
from safetensors.torch import load_file

from engine.models import load_model


def resident() -> dict[str, int]:
    """Bytes of resident memory of this process: anonymous, and all."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(lines[field].split()[0]) << 10 for key, field in (("anonymous", "RssAnon"), ("all", "VmRSS"))}


class Watch:
    """The most that memory grew by, looked at every few milliseconds and at the end."""

    def __enter__(self) -> Watch:
        gc.collect()
        self.before = resident()
        self.most = dict(self.before)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.is_set():
            self._note()
            time.sleep(0.003)

    def _note(self) -> None:
        self.most = {key: max(self.most[key], value) for key, value in resident().items()}

    def __exit__(self, *_: object) -> None:
        self._note()
        self._over.set()
        self._thread.join()

    def growth(self) -> dict[str, int]:
        return {key: self.most[key] - self.before[key] for key in self.most}


def load(folder: Path, dtype: str) -> int:
    """Load the weights, and return their bytes."""
    weights: Any
    if dtype == "all-at-once":
        held = {key: value.clone() for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
        weights = [value.float() for value in held.values()]
    else:
        weights = list(load_model(folder, dtype=dtype, device="cpu").model.parameters())
    return sum(weight.numel() * weight.element_size() for weight in weights)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        with Watch() as watch:
            size = load(Path(sys.argv[1]), name)
        print(json.dumps({"dtype": name, "weights": size, **watch.growth()}))
