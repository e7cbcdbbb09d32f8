"""Where a pretrained model is, and its tokenizer. Libraries that take seconds to load are loaded by what needs them."""

from __future__ import annotations

from pathlib import Path

from engine.embedded import quiet_transformers
from engine.errors import ModelError
from engine.light_tokenizer import LightTokenizer, TokenizerParts
from engine.tokenizer import Tokenizer

#: seconds for the hub to answer
_HUB_TIMEOUT_S = 10.0


def pretrained_place(name: str | Path) -> str:
    """What ``from_pretrained`` is given; a path that is there must be a model folder."""
    path = Path(name).expanduser()
    if path.is_file():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and the weights")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is not a model folder: it has no config.json")
        return str(path)
    if isinstance(name, Path) or path.is_absolute() or str(name).startswith((".", "~")):
        raise ModelError(f"{name} does not exist; give a model folder, a Hugging Face name or shape:NAME")
    return str(name)


def ask_hub(name: str) -> bool:
    """Ask the hub for a model; whether it cannot be reached, so that only files in its cache are left.

    Without this question transformers would try each file several times before it gives up.

    Raises:
        ModelError: the hub answers that there is no such model, that it may not be had, or that it has no safetensors.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        known = HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor a name that the Hugging Face hub may have") from error
    except GatedRepoError as error:
        raise ModelError(
            f"model {name!r} is given out after its terms were accepted: do so on https://huggingface.co/{name}, then "
            "run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hugging Face hub has no model {name!r} (for a private one run `hf auth login`; for a folder of yours "
            "give its path)"
        ) from error
    except (httpx.HTTPError, OSError):
        return True
    files = [file.rfilename for file in known.siblings or ()]
    if files and not any(file.endswith(".safetensors") for file in files):
        raise ModelError(f"model {name!r} has no safetensors files on the Hugging Face hub, and nothing else is read")
    return False


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model folder, or of a name on the Hugging Face hub. Raises :class:`ModelError`."""
    place = pretrained_place(name)
    with quiet_transformers():
        return read_tokenizer(name, place, Path(place).is_dir() or ask_hub(place))


def tokenizer_from(source: TokenizerParts | str) -> Tokenizer:
    """A tokenizer like the one that has this :attr:`~engine.tokenizer.Tokenizer.source`.

    Raises :class:`ModelError` where it has to be loaded, and cannot be.
    """
    return Tokenizer(LightTokenizer(source)) if isinstance(source, TokenizerParts) else load_tokenizer(source)


def read_tokenizer(name: str, place: str, only_local: bool) -> Tokenizer:
    """The tokenizer of the model ``name``, which is at ``place``. Raises :class:`ModelError`."""
    from transformers import AutoTokenizer

    try:
        return Tokenizer(AutoTokenizer.from_pretrained(place, local_files_only=only_local, trust_remote_code=False))
    except Exception as error:  # the tokenizers library raises nothing more special
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the tokenizer of model {name!r} cannot be read ({reason[:200]}); copy or fetch tokenizer.json and "
            "tokenizer_config.json again"
        ) from error
