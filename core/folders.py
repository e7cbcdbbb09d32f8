"""The folders that commands write runs to, and read them from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from core.arguments import UsageError
from reports.chronicle import JOURNAL_FILE
from reports.rows import RunFolderError
from reports.run import Run
from reports.run_folder import MANIFEST_FILE
from scheduler.journal import replay


def open_folder(args: argparse.Namespace, name: str) -> Path:
    """The folder that a command writes to. An earlier run at ``--out`` is moved aside, never overwritten."""
    if args.out is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        return Path("runs") / f"{stamp}-{args.name or name}"
    out: Path = args.out
    if (out / MANIFEST_FILE).is_file():
        number = next(n for n in range(1, 1 << 30) if not out.with_name(f"{out.name}.{n}").exists())
        aside = out.with_name(f"{out.name}.{number}")
        try:
            out.rename(aside)
        except OSError as error:
            raise UsageError(f"{out} holds an earlier run that cannot be moved aside: {error.strerror}") from error
        if not args.quiet:
            print(f"{out} held an earlier run; it is now {aside}")
    return out


def write_experiment(folder: Path, command: str, runs: list[Run]) -> None:
    """A manifest for a folder of several runs."""
    names = [run.folder.name for run in runs if run.folder is not None]
    write_texts(folder, {MANIFEST_FILE: json.dumps({"command": command, "runs": names}, indent=2) + "\n"})


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write ``texts``, by the names of their files, into ``folder``, which is made if need be; :class:`RunFolderError`
    if they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write {error.filename or folder}: {error.strerror or error}") from error


def experiment_folders(folder: Path) -> list[Path]:
    """The run folders in ``folder``: itself, or those that :func:`write_experiment` lists."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [folder]
    names = manifest.get("runs") if isinstance(manifest, dict) else None
    return [folder / str(name) for name in names] if isinstance(names, list) else [folder]


def replay_folder(folder: Path) -> bool | None:
    """Whether the journal in a run folder replays to the same plans; ``None`` where there is none."""
    path = folder / JOURNAL_FILE
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as journal:
        return replay(journal).exact
