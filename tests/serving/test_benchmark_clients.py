"""aiperf, as it comes from PyPI, against a server: what it counts is what the server counts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_process import ROOT, server

from engine.embedded import default_cache_folder, embedded_model_folder

AIPERF = ROOT / ".venv-clients" / "bin" / "aiperf"
REQUESTS, OUTPUT_TOKENS = 64, 32
ENGINES = {"model": ("--device", "cpu"), "emulated": ("--emulate", "h100-qwen-7b")}


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    if "clients" not in request.config.getoption("-m"):
        pytest.skip("takes minutes, and a client of its own: make test-clients")


def profiled(url: str, folder: Path) -> dict[str, Any]:
    """What aiperf reports of its requests to ``url``."""
    (folder / "smol").symlink_to(embedded_model_folder(default_cache_folder()))
    command = [str(AIPERF), "profile", "-m", "m", "--url", url.removeprefix("http://"), "--endpoint-type", "chat",
               "--streaming", "--concurrency", "8", "--request-count", str(REQUESTS),
               "--synthetic-input-tokens-mean", "64", "--output-tokens-mean", str(OUTPUT_TOKENS),
               "--extra-inputs", "ignore_eos:true", "--tokenizer", "./smol", "--ui-type", "simple"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True)
    (found,) = folder.glob("artifacts/*/profile_export_aiperf.json")
    report: dict[str, Any] = json.loads(found.read_text())
    return report


@pytest.mark.clients
@pytest.mark.model
@pytest.mark.parametrize("engine", ENGINES)
def test_aiperf_counts_what_the_server_counts(engine: str, tmp_path: Path) -> None:
    with server("--served-model-name", "m", engine=ENGINES[engine]) as (_, url):
        report = profiled(url, tmp_path)
        counted = {
            (sample.name, sample.labels.get("finished_reason")): sample.value
            for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
            for sample in family.samples
        }
    assert (report["error_summary"], report["was_cancelled"]) == ([], False)
    assert report["request_count"]["avg"] == counted["vllm:request_success_total", "length"] == REQUESTS
    output = counted["vllm:generation_tokens_total", None]
    assert report["total_usage_completion_tokens"]["avg"] == output == REQUESTS * OUTPUT_TOKENS
    if engine == "emulated":  # whose words are a token each, also where a text is made tokens of again
        assert report["total_output_tokens"]["avg"] == output
    assert report["total_usage_prompt_tokens"]["avg"] == counted["vllm:prompt_tokens_total", None]
