"""The images' descriptions: every path that they copy is there and gets to the builder, nobody is root."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted((ROOT / "deploy" / "docker").glob("Dockerfile.*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile, in order, each with what follows it on its lines."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def copied(path: Path) -> list[str]:
    """From the repository."""
    found = [shlex.split(rest) for name, rest in instructions(path) if name == "COPY"]
    return [source for words in found if not words[0].startswith("--from") for source in words[:-1]]


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_what_is_copied_is_there_and_reaches_the_builder(path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    sources = copied(path)
    assert all((ROOT / source).exists() for source in sources), sources
    assert set(sources) == kept


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_every_package_of_the_wheel_is_in_the_image(path: Path) -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name.rstrip("*") for name in setuptools["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in setuptools["py-modules"]}
    assert packages | modules <= set(copied(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_the_last_stage_is_not_root_says_how_it_is_and_starts_a_server(path: Path) -> None:
    found = instructions(path)
    last = found[max(place for place, (name, _) in enumerate(found) if name == "FROM") :]
    assert [rest for name, rest in last if name == "USER"] == ["10001:10001"]
    (health,) = [rest for name, rest in last if name == "HEALTHCHECK"]
    assert "/ready" in health
    (entry,) = [json.loads(rest) for name, rest in last if name == "ENTRYPOINT"]
    (flags,) = [json.loads(rest) for name, rest in last if name == "CMD"]
    assert entry == ["python", "api_server.py"]
    assert flags[flags.index("--device") + 1] == path.suffix[1:]
    assert flags[flags.index("--port") + 1] in health


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_the_wanted_packages_are_those_of_the_extras(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = [rest for name, rest in instructions(path) if name == "RUN" and "tomllib" in rest]
    code = shlex.split(command)[2]
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    exec(code, {"print": lambda *wanted, sep: lines.extend(wanted)})
    names = {re.split(r"[\[>=;]", line)[0] for line in lines}
    assert {"torch", "transformers", "fastapi", "uvicorn", "ray", "simpy"} <= names
    assert not names & {"lockstep", "pytest", "mypy", "hypothesis"}
