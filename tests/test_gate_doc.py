"""``docs/gate.md``: its commands are run, and what it offers other repositories is what there is."""

from __future__ import annotations

import random
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from core.arguments import build_parser
from reports.gate import COUNTERS, KINDS, Ceiling

ROOT = Path(bench.__file__).parent
TEXT = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
#: by the name in the first line
FILES = {code.splitlines()[0].removeprefix("# "): code for kind, code in BLOCKS if kind == "yaml"}
COMMANDS = [line.split(" #")[0].strip() for kind, code in BLOCKS if kind == "sh" for line in code.splitlines()]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's, with the page's files in it."""
    for name in ("gate.yaml", "mine.yaml"):
        (tmp_path / name).write_text(FILES[name])
    rng = random.Random(3)
    rows = [f"{index / 10},{rng.randint(20, 600)},{rng.randint(4, 60)}" for index in range(500)]
    (tmp_path / "my_trace.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> int:
    program, *argv = shlex.split(command)
    assert (program, argv.pop(0)) == ("python", "bench.py")
    return bench.main(argv)


def test_the_commands_of_the_page_work_in_a_users_repository(repository: Path) -> None:
    own = [command for command in COMMANDS if "gate.yaml" in command or "my_trace.csv" in command]
    assert len(COMMANDS) == len(own) + 1, "all but the gate of Lockstep itself, which CI runs"
    assert run("python bench.py --config gate.yaml") == 2
    blessing = [command for command in own if "--update-baseline" in command]
    assert [run(command) for command in [*blessing, *own]] == [0] * (len(blessing) + len(own))
    assert {path.name for path in repository.glob("*.json")} == {"padding_baseline.json", "other.json"}


def test_the_page_names_what_is_compared() -> None:
    names = re.findall(r"`([a-z_*]+)`", TEXT)
    for counter in COUNTERS:
        assert counter in names or f"{counter.rpartition('_')[0]}_*" in names, counter
    for kind in KINDS:
        assert f"/{kind}=" in TEXT or kind == "decode"


def test_the_ceilings_of_the_page_can_be_read() -> None:
    rows = [line.split("`")[1] for line in TEXT.splitlines() if line.startswith("| `") and "=" in line.split("`")[1]]
    assert {Ceiling.parse(text).kind for text in rows} == set(KINDS)


def loaded(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_of_the_page_gives_the_action_what_it_takes() -> None:
    workflow = yaml.safe_load(FILES[".github/workflows/gate.yml"])
    step = workflow["jobs"]["gate"]["steps"][-1]
    assert set(step["with"]) <= set(loaded("action.yml")["inputs"])
    for name in loaded("action.yml")["inputs"]:
        assert f"`{name}`" in TEXT


def test_the_hook_of_the_page_is_offered_and_runs_a_command_that_is_installed() -> None:
    configured = yaml.safe_load(FILES[".pre-commit-config.yaml"])["repos"][0]["hooks"][0]
    (hook,) = loaded(".pre-commit-hooks.yaml")
    assert hook["id"] == configured["id"]
    program, *argv = shlex.split(hook["entry"])
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[program] == "bench:main"
    assert build_parser().parse([*argv, *configured["args"]]).mode == "gate"
    for name in ("gate.yaml", "mine.yaml", "mine.py", "my_trace.csv", "trace.jsonl", "padding_baseline.json"):
        assert re.search(hook["files"], name), name
    assert not re.search(hook["files"], "README.md")
