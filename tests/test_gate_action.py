"""``action.yml``: its steps, run by the shell that a runner would use, in a folder that is a user's repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench

ROOT = Path(bench.__file__).parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
#: as a runner starts ``shell: bash``
SHELL = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c")

GATE = "workload: my_trace.csv\npolicy: [fcfs, sjf-bucket]\nceiling: [sjf-bucket/padded=5%]\n"
TRACE = "arrival_s,input_tokens,output_tokens\n0,100,8\n0,90,7\n0.1,33,20\n0.2,64,5\n"


def step(name: str) -> dict[str, Any]:
    (found,) = (step for step in STEPS if step.get("name") == name)
    return dict(found)


class Runner:
    """A runner on which Lockstep is installed."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.temp = folder / "repository", folder / "temp"
        self.summary = folder / "summary.md"
        program = self.temp / "lockstep" / "bin" / "lockstep"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "bench.py"}" "$@"\n')
        program.chmod(0o755)
        self.repository.mkdir()
        (self.repository / "gate.yaml").write_text(GATE)
        (self.repository / "my_trace.csv").write_text(TRACE)

    def gate(self, arguments: str = "", config: str = "gate.yaml") -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "RUNNER_TEMP": str(self.temp), "GITHUB_STEP_SUMMARY": str(self.summary),
               "CONFIG": config, "ARGUMENTS": arguments}  # fmt: skip
        self.summary.unlink(missing_ok=True)
        script = step("Compare with the baseline")["run"]
        return subprocess.run([*SHELL, script], cwd=self.repository, env=env, capture_output=True, text=True)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_the_action_says_same_different_and_cannot_compare(runner: Runner) -> None:
    missing = runner.gate()
    assert missing.returncode == 2
    assert "::error title=Padding-waste gate::there is nothing to compare with" in missing.stdout
    assert runner.gate("--update-baseline").returncode == 0
    same = runner.gate()
    assert same.returncode == 0, same.stdout + same.stderr
    assert "::error" not in same.stdout
    assert "passed: 2 cases equal to padding_baseline.json, 1 ceiling kept" in runner.summary.read_text()
    broken = runner.gate("--ceiling fcfs/padded=0%")
    assert broken.returncode == 1
    assert "::error title=Padding-waste gate::differs from the baseline" in broken.stdout
    assert "ceiling broken: fcfs/padded: " in runner.summary.read_text()


def test_what_is_handed_to_the_action_is_no_program(runner: Runner) -> None:
    done = runner.gate("$(touch spoilt) ;touch spoilt `touch spoilt`", config="a; touch spoilt")
    assert done.returncode == 2
    assert not (runner.repository / "spoilt").exists()
    for script in (step["run"] for step in STEPS if "run" in step):
        assert "${{" not in script


def test_every_input_is_used_and_every_step_with_a_script_names_its_shell() -> None:
    text = str(STEPS)
    for name in ACTION["inputs"]:
        assert f"inputs.{name} " in text, name
    assert ACTION["runs"]["using"] == "composite"
    assert all(step.get("shell") == "bash" for step in STEPS if "run" in step)
    assert "$GITHUB_ACTION_PATH" in step("Install Lockstep")["run"]
