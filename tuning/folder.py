"""The files of a tuning that has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuning.errors import TuningError


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write ``texts``, by the names of their files, into ``folder``, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise TuningError(f"cannot write to {folder}: {error.strerror or error}") from error
