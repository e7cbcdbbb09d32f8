"""The examples in Python are run: the quick start's as it is printed, the README's, and ``docs/python-api.md``'s."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import core.engine
from core.engine import GenerationMetrics, GenerationResult, InferenceEngine
from engine.embedded import default_cache_folder, embedded_model_folder

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")

#: the two examples of the document that the project began with
QUICK_START = (
    """
from core.engine import InferenceEngine

# 初始化引擎
engine = InferenceEngine(model_path="/path/to/your/model")

# 生成文本
results = engine.generate([
    "Hello, my name is",
    "The future of AI is"
], max_tokens=100)

for seq, text in results.items():
    print(f"Prompt: {seq.prompt}")
    print(f"Generated text: {text}")
""",
    """
from core.engine import InferenceEngine

# 初始化引擎
engine = InferenceEngine(model_path="/path/to/your/model")

# 流式生成
for token, text in engine.stream_generate("人工智能的未来是", max_tokens=50):
    print(text, end="", flush=True)
""",
)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever there is: other tests may be using the GPU."""
    made = InferenceEngine.__init__

    def on_cpu(engine: InferenceEngine, *args: object, **settings: object) -> None:
        made(engine, *args, **{"device": "cpu", **settings})  # type: ignore[arg-type]

    monkeypatch.setattr(InferenceEngine, "__init__", on_cpu)


@pytest.mark.model
@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("example", QUICK_START)
def test_the_quick_start_runs_as_it_is_printed(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = embedded_model_folder(default_cache_folder())
    exec(example.replace("/path/to/your/model", str(folder)), {})
    printed = capsys.readouterr().out
    if "results" in example:
        assert re.findall("^Prompt: (.*)$", printed, re.MULTILINE) == ["Hello, my name is", "The future of AI is"]
        assert len(re.findall("^Generated text: .*[a-z]", printed, re.MULTILINE)) == 2
    else:
        assert len(printed) > 10


@pytest.mark.model
@pytest.mark.usefixtures("on_a_cpu")
def test_the_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block for block in blocks((ROOT / "README.md").read_text(encoding="utf-8")) if "core.engine" in block)
    exec(re.sub(r"max_tokens=\d+", "max_tokens=8", example), {})
    assert capsys.readouterr().out.startswith("Prompt: Hello, my name is\nGenerated text: ")


@pytest.mark.model
@pytest.mark.usefixtures("on_a_cpu")
def test_the_examples_of_the_reference_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    printed = []
    for block in blocks(DOC):
        exec(block, names)
        printed.append(capsys.readouterr().out)
    start, result, stream, together, early, state, closed = printed
    assert start.startswith("Prompt: Hello, my name is\n")
    assert re.search(r"length generate-\d+\nfirst token after \d+\.\d{3} s, then \d\.\d{4} s a token\n$", result)
    assert re.search(r"length \d+\.\d+\n$", stream)
    assert ast.literal_eval(together[together.rindex("[") :])
    assert re.fullmatch(r"(aborted|length|eos) \d+\n", early)
    assert state == "(0, 0, 0)\n"
    assert closed == ""


def test_the_reference_names_what_there_is() -> None:
    for name in core.engine.__all__:
        if name.endswith("Error") and name != "EngineError":
            assert f"| `{name}`" in DOC
    for name, method in inspect.getmembers(InferenceEngine, inspect.isfunction):
        assert name.startswith("_") or f"| `{name}(" in DOC, method
    for fields in (GenerationMetrics, GenerationResult):
        for name in fields.__dataclass_fields__:
            assert re.search(rf"`(metrics)?\.?{name}[`.]", DOC), name
