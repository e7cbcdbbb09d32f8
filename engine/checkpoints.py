"""Reading a model's weights from safetensors files: onto the device as they are read, never twice in memory.

transformers maps the files and hands out one tensor after the other. On a CPU a tensor that has the wanted dtype stays
where it is, in the pages of its file; any other is converted by itself. On a GPU each is copied there from its file's
pages. What is left to do here: to show how far it is, and to refuse what transformers would let pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging

from engine.embedded import quiet_transformers
from engine.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: files of weights that are Python pickles
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
#: models whose text decoder is run by itself, and how its tensors are called there and by itself
_TEXT_PARTS = {"gemma3": {r"^language_model\.": "", r"^model\.language_model\.": "model."}}


def text_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text decoder, of a model with other parts that can do without them; else ``config``."""
    if config.model_type not in _TEXT_PARTS:
        return config
    text: PreTrainedConfig = config.text_config
    return text


def read_model(
    name: str,
    place: str,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
    notify: Callable[[str], None],
    progress: bool = True,
    only_local: bool = False,
) -> Any:
    """The transformers model of ``config``, or of its text part, with weights read in ``dtype`` onto ``device``.

    ``place`` is a folder or a name on the hub, ``name`` what messages call it. ``progress``: a bar on standard error,
    if that is a terminal. ``only_local``: ask the hub for nothing.

    Raises:
        ModelError: files of the checkpoint are not there, damaged or not safetensors; or they lack tensors that the
            model has, or have them in other shapes.
    """
    folder = Path(place)
    if folder.is_dir():
        check_files(folder)
    load: Any = AutoModelForCausalLM.from_pretrained
    renamed = _TEXT_PARTS.get(config.model_type)
    shown = progress and sys.stderr.isatty()
    with quiet_transformers(bars=shown), _weights_bar(shown):
        try:
            model, report = load(
                place,
                config=text_part(config),
                key_mapping=renamed,
                dtype=dtype,
                attn_implementation=attention,
                device_map=None if device.type == "cpu" else {"": device},
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=only_local,
                # told below, with names and shapes
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise ModelError(f"a weights file of model {name!r} is damaged ({error}); fetch it again") from error
    _refuse_misfits(name, report)
    if renamed is not None:
        notify(f"{name}: its text part is run, without its {len(report['unexpected_keys'])} other tensors")
    elif report["unexpected_keys"]:
        notify(f"{name}: the model has no place for {_listed(report['unexpected_keys'])}; left out")
    return model


def _refuse_misfits(name: str, report: dict[str, Any]) -> None:
    """Refuse a model for which tensors were made up."""
    if report["missing_keys"]:
        raise ModelError(
            f"the checkpoint of model {name!r} lacks {_listed(report['missing_keys'])}; it is not complete, or not of "
            "the architecture that its config.json names"
        )
    if report["mismatched_keys"]:
        shapes = [f"{key} is {list(found)}, not {list(expected)}" for key, found, expected in report["mismatched_keys"]]
        raise ModelError(
            f"the checkpoint of model {name!r} does not have the shapes that its config.json gives: {_listed(shapes)}"
        )


def _listed(names: Any, most: int = 3) -> str:
    """``1 tensor: a``, or ``5 tensors: a, b, c and 2 more``."""
    known = sorted(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"{len(known)} tensor{'s' if len(known) > 1 else ''}: {', '.join(known[:most])}{more}"


def check_files(folder: Path) -> None:
    """See that the safetensors files of a model folder are there and whole; of each only the header is read.

    Raises:
        ModelError: they are not; the message has the file and what to do.
    """
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} is damaged or cut off ({' '.join(str(error).split())}); copy or fetch it again"
            ) from error


def _weight_files(folder: Path) -> list[Path]:
    """The files of the weights: one, or the shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise ModelError(_no_weights(folder))
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of weights ({error!r}); copy or fetch it again") from error
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{index} names {len(names)} files, of which {len(absent)} are not there ({absent[0]}"
            f"{', ...' if len(absent) > 1 else ''}); copy or fetch the missing ones"
        )
    return [folder / name for name in names]


def _no_weights(folder: Path) -> str:
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    for name in files:
        if name.endswith(_PICKLED):
            return (
                f"{folder} has weights as Python pickles only ({name}), which may run any code when they are read; "
                "get them as safetensors (load them once where you trust them, then save_pretrained)"
            )
    loose = [name for name in files if name.endswith(".safetensors")]
    if loose:
        return f"{folder} has {loose[0]}, but no {INDEX} that says what is where; copy or fetch the index"
    return f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}"


@contextmanager
def _weights_bar(shown: bool) -> Iterator[None]:
    """Show how many of the tensors have been read, in the place of transformers' own bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:

        def bar(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("desc") != "Loading weights":
                return factory(*args, **kwargs)
            return progress.track(args[0], description="loading weights")

        before = logging.set_tqdm_hook(bar)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)
