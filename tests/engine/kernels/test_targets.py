"""All kernels compile to machine code for an A100 and for an H100, whatever machine the test runs on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
KERNELS = {
    "_best_kernel", "_best_of_piece_kernel", "_decode_kernel", "_embed_kernel", "_gated_kernel", "_norm_kernel",
    "_prefill_kernel", "_rotate_kernel", "_skinny_kernel", "_take_in_kernel",
}  # fmt: skip


def test_all_kernels_compile_for_sm_80_and_sm_90(tmp_path: Path) -> None:
    root = HERE.parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(root), "TRITON_CACHE_DIR": str(tmp_path)}
    compiling = {
        capability: subprocess.Popen(
            [sys.executable, str(HERE / "compile_kernels.py"), capability],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for capability in ("80", "90")
    }  # fmt: skip
    for capability, process in compiling.items():
        output, errors = process.communicate()
        assert process.returncode == 0, f"sm_{capability}: {errors[-3000:]}"
        assert set(output.split()) == KERNELS
