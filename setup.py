"""Compiles the core of scheduler and simulator to machine code (mypyc) where ``LOCKSTEP_COMPILE=1`` asks for it.

    LOCKSTEP_COMPILE=1 pip install .

The same source, the same plans, two to four times as fast. Without the variable nothing is compiled, and no compiler is
needed. What users write classes of (orders, ledgers, policies, oracles) stays plain Python.
"""

import os
import sys

from setuptools import setup

#: what runs in every step, by package
CORE = {
    "scheduler": (
        "accounting", "admission", "buckets", "cohorts", "completion", "composition", "config", "counters", "digest",
        "eviction", "features", "flight", "graphs", "kv/buddy", "kv/contiguous", "kv/host", "kv/paged", "kv/pieces",
        "kv/pool", "kv/prefix_cache", "plan", "prefill", "promotion", "ranking",
        "request", "scheduler", "sequence", "state", "stepping", "waiting",
    ),
    "simulator": ("replica", "roofline"),
}  # fmt: skip

arguments = {}
if os.environ.get("LOCKSTEP_COMPILE") == "1":
    # what pip installs before it builds (types of numpy included); it runs this file without it once, to ask
    if "egg_info" in sys.argv:
        arguments["setup_requires"] = ["mypy>=1.15", "numpy>=2.0"]
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        if "egg_info" not in sys.argv:
            raise SystemExit("LOCKSTEP_COMPILE=1 needs mypy at build time: pip install mypy") from error
    else:
        arguments["ext_modules"] = mypycify(
            [f"{package}/{module}.py" for package, modules in CORE.items() for module in modules],
            opt_level=os.environ.get("LOCKSTEP_COMPILE_LEVEL", "3"),
        )

setup(**arguments)
