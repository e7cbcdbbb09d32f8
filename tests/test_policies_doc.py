"""``docs/policies.md``: its examples are run, and its tables are those of the program."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import bench
from scheduler.buckets import BUCKETS
from scheduler.config import SchedulerConfig
from scheduler.oracle import ORACLES
from scheduler.parts import PARTS
from scheduler.policies import ALIASES, POLICIES
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.user_policies.description import KEYS
from scheduler.user_policies.named_orders import ORDERS, URGENCIES
from simulator.costs import IntegerCosts
from simulator.replica import ANY, simulate

TEXT = (Path(bench.__file__).parent / "docs" / "policies.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
#: by the name in the first line
FILES = {code.splitlines()[0].removeprefix("# "): code for kind, code in BLOCKS if kind in ("yaml", "python")}
COMMANDS = [code.strip() for kind, code in BLOCKS if kind == "bash"]
#: what is run of each file
EXAMPLES = {
    "short_first.yaml": "short_first.yaml",
    "levels.yaml": "levels.yaml",
    "least_work.py": "least_work.py:LeastWork",
    "classes.py": "classes.py:classes",
    "patience.py": "patience.py:Patience",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the document's files in it."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tables() -> list[list[list[str]]]:
    """The cells of each table, its header left out."""
    found: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in [*TEXT.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            found.append(rows[2:])
            rows = []
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def listed(first: str) -> list[list[str]]:
    """The table whose first row begins with the name ``first``."""
    return next(rows for rows in tables() if first in names(rows[0][0]))


# -- examples


def test_every_example_is_run() -> None:
    assert set(FILES) == set(EXAMPLES)
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_in_steps_as_in_stretches_and_is_not_fcfs(example: str, folder: Path) -> None:
    requests = [
        Request(f"r{i}", i * 400, 8 + 31 * i % 90, 40, 3 + 11 * i % 37, priority=i % 3, tenant="ab"[i % 2])
        for i in range(60)
    ]
    digests = []
    for policy, max_repeat in (("fcfs", ANY), (EXAMPLES[example], 1), (EXAMPLES[example], ANY)):
        config = SchedulerConfig(policy=policy, max_running=4, kv_tokens=512, prefill_token_ns=1_000_000)
        scheduler = simulate(requests, Scheduler(config), IntegerCosts(1000, 37, 11, 3), max_repeat=max_repeat)
        assert scheduler.counters.finished == len(requests)
        digests.append(scheduler.digest.hexdigest())
    assert digests[1] == digests[2] != digests[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command: str, folder: Path) -> None:
    program, *argv = shlex.split(command.removeprefix("python "))
    assert program == "bench.py"
    assert bench.main([*argv, "--quiet", "--out", "run"]) == 0
    assert (folder / "run" / "report.html").exists()


def test_the_error_is_worded_as_it_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text block is what a run prints, but for the figures."""
    (said,) = [code.strip() for kind, code in BLOCKS if kind == "text"]
    lines = [
        "from scheduler.policy import Order", "", "", "class Mine(Order):", "    def rank(self, sequence, view):",
        "        if sequence.number < 17:", "            return 0", "        return 1 / 0",
    ]  # fmt: skip
    (folder / "mine.py").write_text("\n".join(lines))
    command = (
        "--mode sim --workload seed --costs roofline:a100-40gb:qwen-7b --policy mine.py:Mine --quiet --out runs/mine"
    )
    assert bench.main(command.split()) == 2
    printed = capsys.readouterr().err.strip()
    assert re.sub(r"\d+\.\d+ s", "T", printed) == re.sub(r"\d+\.\d+ s", "T", said)


# -- tables


def test_the_policies_are_those_of_the_program() -> None:
    rows = {names(row[0])[0]: row for row in listed("fcfs")}
    assert list(rows) == list(POLICIES)
    for name, entry in POLICIES.items():
        assert rows[name][2:5] == [entry.needs, entry.preempts, entry.starvation_free], name
    for alias, name in ALIASES.items():
        assert alias in names(rows[name][0])


def test_every_name_of_a_part_is_explained() -> None:
    for part, kinds in PARTS.items():
        section = TEXT.split(f"### `--{part}`")[1].split("\n## ")[0].split("\n### ")[0]
        for name in kinds:
            assert f"`{name}`" in section, (part, name)
        assert "Refused" in section


def test_oracles_buckets_orders_and_urgencies_are_those_of_the_program() -> None:
    assert [names(row[0])[0] for row in listed("true")] == list(ORACLES)
    assert [names(row[0])[0] for row in listed("N")] == list(BUCKETS)
    orders = {names(row[0])[0]: row for row in listed("arrival")}
    assert set(orders) == set(ORDERS)
    for name, order in ORDERS.items():
        assert {option for option in order.options if f"`{option}`" in orders[name][2]} == set(order.options)
        assert ("waiting only" in orders[name][1]) == (not order.resident)
    rows = next(rows for rows in tables() if rows[0][-1] == "any")
    assert {names(row[0])[0]: tuple(names(row[2])) for row in rows} == {
        name: urgency.resident for name, urgency in URGENCIES.items()
    }


def test_every_key_of_a_description_is_explained() -> None:
    assert {key for row in listed("name") for key in names(row[0])} == set(KEYS)
