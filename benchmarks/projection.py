"""How good projections are where something was measured: other shapes on the same GPU, and operators on an A100.

    .venv/bin/python benchmarks/projection.py > benchmarks/results/projection-a100-from-h100.txt

Every profile that comes along is calibrated on and projected to the shapes of the others, whose recordings say what
their steps took. Then the table of ``--mode reproduce --experiments a100-from-h100``.
"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

# this folder's scheduler.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from core.provenance import git_commit  # noqa: E402
from core.reproduce import projection  # noqa: E402
from core.reproduce.experiment import Options  # noqa: E402
from reports.terminal import print_reproduction  # noqa: E402
from simulator.calibration import errors_on, project  # noqa: E402
from simulator.gpus import gpu_of  # noqa: E402
from simulator.profiles import profile_names, profile_path, read_profile, title  # noqa: E402

KINDS = ("prefill", "decode", "mixed")


def main() -> None:
    print(f"# {date.today()}, commit {git_commit()}")
    print("# python benchmarks/projection.py")
    profiles = {name: read_profile(profile_path(name)) for name in profile_names()}
    print(
        "\nCalibrated on (rows), projected to the recorded shape of (columns), on the same GPU: mean |error| / mean of"
    )
    print("the device's time of prefill, decode and mixed steps, %; on the diagonal of the recording itself\n")
    width = max(map(len, profiles))
    print(f"{'':{width}}  " + "  ".join(f"{name:>20}" for name in profiles))
    for origin, profile in profiles.items():
        gpu = gpu_of(str(profile.about["hardware"]))
        assert gpu is not None
        cells = []
        for measured in profiles.values():
            model = str(measured.about["model"]).removeprefix("shape:")
            costs = project(f"project:{origin}:{gpu.name}:{model}", profile, gpu.name, model)
            errors = errors_on(measured, costs.rooflines)
            cells.append("/".join(f"{100 * errors['paged', kind]:.1f}" for kind in KINDS))
        print(f"{origin:{width}}  " + "  ".join(f"{cell:>20}" for cell in cells))
    print()
    for name, profile in profiles.items():
        costs = project(f"project:{name}:a100-80gb", profile, "a100-80gb")
        print(f"{name}: {title(profile.about)}")
        print(f"  {costs.shares['paged']}\n  KV on {costs.gpu.title}: {costs.kv_tokens:,} tokens")
    print()
    print_reproduction([projection.run(Options())])


if __name__ == "__main__":
    main()
