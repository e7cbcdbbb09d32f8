"""Checkpoints: what is read is what was saved, in the memory that it needs; and what is wrong with one is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from model_folders import NO_SPECIAL_TOKENS, TINY, write_large_model, write_model
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, LlamaConfig

import bench
from engine.checkpoints import INDEX, WEIGHTS
from engine.errors import ModelError
from engine.models import load_model

HERE = Path(__file__).parent


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sharded_weights_are_those_that_were_saved(tmp_path: Path, dtype: str) -> None:
    saved = write_model(tmp_path)
    assert len(shards(tmp_path)) > 3
    found = load_model(tmp_path, dtype=dtype, device="cpu")
    wanted = getattr(torch, dtype)
    for name, parameter in saved.named_parameters():
        ours = found.model.get_parameter(name)
        assert ours.dtype == wanted
        assert torch.equal(ours, parameter.to(wanted)), name
    assert found.tokenizer is not None


def test_one_file_and_tied_weights(tmp_path: Path) -> None:
    config = LlamaConfig.from_dict({**TINY.to_dict(), "tie_word_embeddings": True})
    write_model(tmp_path, config, shard="1GB")
    assert [file.name for file in shards(tmp_path)] == [WEIGHTS]
    model = load_model(tmp_path, device="cpu").model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_never_twice_in_memory(tmp_path: Path) -> None:
    """226 MB in bfloat16, 452 MB in float32. Anonymous memory is what the kernel cannot drop and read again."""
    config = LlamaConfig(
        vocab_size=8192, hidden_size=1024, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=8, max_position_embeddings=64, **NO_SPECIAL_TOKENS,
    )  # fmt: skip
    write_large_model(tmp_path, config, torch.bfloat16, shard="50MB")
    assert len(shards(tmp_path)) == 5
    script = [sys.executable, str(HERE / "loading_memory.py"), str(tmp_path), "bfloat16", "float32", "all-at-once"]
    done = subprocess.run(
        script, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(HERE.parent.parent)}
    )
    assert done.returncode == 0, done.stderr
    found = {line["dtype"]: line for line in map(json.loads, done.stdout.splitlines())}
    share = {dtype: line["anonymous"] / line["weights"] for dtype, line in found.items()}
    resident = {dtype: line["all"] / line["weights"] for dtype, line in found.items()}
    print({dtype: f"anonymous {share[dtype]:.2f}, resident {resident[dtype]:.2f} of the weights" for dtype in found})
    assert found["float32"]["weights"] == 2 * found["bfloat16"]["weights"] > 400e6
    assert share["bfloat16"] < 0.2, "weights in the file's dtype stay in its pages"
    assert share["float32"] < 1.2
    assert share["all-at-once"] > 1.4, "what is to be found would not be found"


def test_the_text_part_of_gemma_3_is_run_by_itself(tmp_path: Path) -> None:
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 8,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(
        text_config={**text, **NO_SPECIAL_TOKENS}, vision_config=vision, mm_tokens_per_image=4, image_token_index=5,
        boi_token_index=6, eoi_token_index=7,
    )  # fmt: skip
    saved = write_model(tmp_path, config, shard="1GB")
    said: list[str] = []
    model = load_model(tmp_path, device="cpu", attention="sdpa", notify=said.append).model
    ids = torch.arange(10, 40)[None]
    assert type(model).__name__ == "Gemma3ForCausalLM"
    torch.testing.assert_close(model(ids).logits, saved.eval()(ids).logits)
    (line,) = said
    assert "its text part is run, without its" in line


# -- what is wrong with a checkpoint


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def file_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def remove_a_shard(folder: Path) -> None:
    shards(folder)[1].unlink()


def cut_a_shard_off(folder: Path) -> None:
    file = shards(folder)[1]
    file.write_bytes(file.read_bytes()[:-100])


def empty_a_shard(folder: Path) -> None:
    shards(folder)[1].write_bytes(b"")


def name_an_absent_file(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "elsewhere.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def break_the_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": ')


def remove_the_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def leave_pickles_only(folder: Path) -> None:
    for file in [*shards(folder), folder / INDEX]:
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def remove_all_weights(folder: Path) -> None:
    for file in [*shards(folder), folder / INDEX]:
        file.unlink()


def lose_a_tensor(folder: Path) -> None:
    rewrite(
        file_of(folder, "model.layers.1.mlp.up_proj.weight"),
        lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
    )


def lose_many_tensors(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))


def break_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def remove_the_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def break_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "32"}))


def break_a_part_of_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": ["default"]}))


def cut_the_configuration_off(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", ')


def change_a_shape(folder: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()

    rewrite(file_of(folder, "model.norm.weight"), cut)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_a_shard, r"names \d+ files, of which 1 are not there \(model-00002-of-\d+\.safetensors\)"),
        (cut_a_shard_off, r"model-00002-of-\d+\.safetensors is damaged or cut off .*; copy or fetch it again"),
        (empty_a_shard, r"model-00002-of-\d+\.safetensors is damaged or cut off"),
        (name_an_absent_file, r"1 are not there \(elsewhere\.safetensors\); copy or fetch"),
        (break_the_index, r"is not an index of weights"),
        (remove_the_index, r"has model-00001-of-\d+\.safetensors, but no model\.safetensors\.index\.json"),
        (leave_pickles_only, r"as Python pickles only \(pytorch_model\.bin\).* get them as safetensors"),
        (remove_all_weights, r"has no weights: neither"),
        (lose_a_tensor, r"lacks 1 tensor: model\.layers\.1\.mlp\.up_proj\.weight; it is not complete"),
        (lose_many_tensors, r"lacks 9 tensors: model\.layers\.3\.\S+, \S+, \S+ and 6 more"),
        (change_a_shape, r"1 tensor: model\.norm\.weight is \[31\], not \[32\]"),
        (break_the_tokenizer, r"the tokenizer of model .* cannot be read .*; copy or fetch tokenizer\.json"),
        (remove_the_tokenizer, r"the tokenizer of model .* cannot be read .*; copy or fetch tokenizer\.json"),
        (break_the_configuration, r"cannot load model .*hidden_size"),
        (break_a_part_of_the_configuration, r"cannot load model"),
        (cut_the_configuration_off, r"cannot load model .*config\.json' is not a valid JSON file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_line(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    write_model(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_tensors_without_a_place_are_named_and_left_out(tmp_path: Path) -> None:
    write_model(tmp_path)
    rewrite(
        shards(tmp_path)[0], lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    )
    said: list[str] = []
    load_model(tmp_path, device="cpu", notify=said.append)
    assert [line.split(": ", 1)[1] for line in said] == [
        "the model has no place for 1 tensor: model.layers.0.self_attn.q_proj.bias; left out"
    ]


# -- the bar


class Terminal:
    """Standard error, or what passes for a terminal there."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("terminal", "progress", "shown"), [(True, True, True), (True, False, False),
                                                             (False, True, False)])  # fmt: skip
def test_the_bar_is_for_terminals_and_can_be_silenced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    progress: bool,
    shown: bool,
) -> None:
    write_model(tmp_path)
    stderr = Terminal(terminal)
    counted: list[str] = []
    track = Progress.track

    def counting(self: Progress, items: Any, description: str) -> Any:
        for number, item in enumerate(track(self, items, description=description), 1):
            counted.append(f"{description} {number}/{len(items)}")
            yield item

    monkeypatch.setattr(Progress, "track", counting)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    load_model(tmp_path, device="cpu", progress=progress)
    assert counted[-1] == "loading weights 30/30"
    assert ("loading weights" in stderr.text) == shown
    assert "Loading weights" not in stderr.text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_command_shows_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    write_model(tmp_path)
    asked: list[bool] = []

    def read(*_: Any, progress: bool, **__: Any) -> Any:
        asked.append(progress)
        raise ModelError("enough")

    monkeypatch.setattr("engine.models.read_model", read)
    command = ["--mode", "real", "--workload", "seed", "--requests", "1", "--device", "cpu", "--model", str(tmp_path)]
    assert bench.main([*command, "--out", str(tmp_path / "run"), *(["--quiet"] if quiet else [])]) == 2
    assert asked == [not quiet]


# -- the hub


class Hub:
    """What the hub answers, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
        self.asked = 0
        self._answer = answer
        monkeypatch.setattr(HfApi, "model_info", self._info)

    def _info(self, name: str, timeout: float) -> Any:
        self.asked += 1
        raise self._answer


def refusal(kind: type[Exception], status: int) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/api/models/some-org/some-model")
    return kind("refused", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.ConnectError("no route"), "hub cannot be reached; give a model folder or shape:NAME, or connect once"),
        (httpx.ReadTimeout("slow"), "hub cannot be reached"),
        (refusal(GatedRepoError, 403), "terms were accepted: do so on https://huggingface.co/some-org/some-model"),
        (refusal(RepositoryNotFoundError, 404), "has no model 'some-org/some-model'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, answer: Exception, said: str) -> None:
    hub = Hub(monkeypatch, answer)

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(httpx.Client, "send", no_network)
    with pytest.raises(ModelError, match=said) as caught:
        load_model("some-org/some-model", device="cpu")
    assert hub.asked == 1
    assert "\n" not in str(caught.value)


def test_what_cannot_be_a_name_is_said_without_a_question() -> None:
    with pytest.raises(ModelError, match="neither a folder nor a name"):
        load_model("some/where/else", device="cpu")


def test_a_repository_of_pickles_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        siblings = (type("File", (), {"rfilename": "pytorch_model.bin"})(),)

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: Info())
    with pytest.raises(ModelError, match="no safetensors files"):
        load_model("some-org/some-model", device="cpu")
