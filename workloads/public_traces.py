"""The public traces that the readers were made for: where they are, how to recognise them, whom to cite.

The project ships none of them. A file is recognised by its SHA-256, whatever it is called.
"""

from __future__ import annotations

from typing import NamedTuple


class PublicTrace(NamedTuple):
    """A trace that anyone can download. ``sha256`` is of the file at ``url``, which names a fixed commit."""

    file: str
    description: str
    url: str
    sha256: str
    licence: str
    cite: str


_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/b469a113cedca53ddc3bdea71a143dc4b7d8700c/data/"
_MOONCAKE = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3b5a594133958449a1feaf1c9e0fc1b553e34a28/"
_VIDUR = "https://raw.githubusercontent.com/microsoft/vidur/7d47513363ec447a741ac5e47241580b47724fbf/"

PUBLIC_TRACES = (
    PublicTrace(
        "AzureLLMInferenceTrace_conv.csv",
        "Azure LLM inference, conversation, November 2023",
        _AZURE + "AzureLLMInferenceTrace_conv.csv",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        "CC-BY 4.0",
        "Splitwise, ISCA 2024",
    ),
    PublicTrace(
        "AzureLLMInferenceTrace_code.csv",
        "Azure LLM inference, code, November 2023",
        _AZURE + "AzureLLMInferenceTrace_code.csv",
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        "CC-BY 4.0",
        "Splitwise, ISCA 2024",
    ),
    PublicTrace(
        "mooncake_synthetic_trace.jsonl",
        "Mooncake, synthetic",
        _MOONCAKE + "FAST25-release/traces/synthetic_trace.jsonl",
        "bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
        "Apache-2.0",
        "Mooncake, FAST 2025",
    ),
    PublicTrace(
        "arxiv_summarization_llama2_lengths.csv",
        "arXiv summarization lengths in Llama-2 tokens",
        _VIDUR + "data/processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
        "9d3580538d915ca75e4aaaa54590b42dbb17abc6d74c8913310cf07c232adcdc",
        "MIT",
        "Vidur, MLSys 2024",
    ),
)


def by_sha256(digest: str) -> PublicTrace | None:
    """The public trace whose file has this hex digest."""
    return next((trace for trace in PUBLIC_TRACES if trace.sha256 == digest), None)


def by_file_name(name: str) -> PublicTrace | None:
    """The public trace that is usually saved under this file name."""
    return next((trace for trace in PUBLIC_TRACES if name in (trace.file, trace.url.rpartition("/")[2])), None)
