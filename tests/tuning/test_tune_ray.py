"""A search spread over a Ray cluster of two nodes comes to what one machine comes to; only with -m ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a cluster of two nodes of one CPU each, processes of this machine."""
    if "ray" not in request.config.getoption("-m"):
        pytest.skip("starts a Ray cluster; only with -m ray")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def answer(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tuning.json").read_text())
    workers = found.pop("seconds")["workers"]
    return {name: value for name, value in found.items() if name not in ("command", "commands")} | {"n": workers}


@pytest.mark.ray
def test_two_nodes_give_the_same_answer_as_one_machine(
    address: str, given: list[str], space: Path, tmp_path: Path
) -> None:  # fmt: skip
    argv = [*given, "--space", str(space)]
    assert bench.main([*argv, "--out", str(tmp_path / "here")]) == 0
    place = argv.index("--workers")
    argv[place : place + 2] = ["--ray", address]
    assert bench.main([*argv, "--out", str(tmp_path / "there")]) == 0
    here, there = answer(tmp_path / "here"), answer(tmp_path / "there")
    assert (here.pop("n"), there.pop("n")) == (1, 2)
    assert here == there
