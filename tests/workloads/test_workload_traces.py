"""Trace readers: exact where the file is good, one clear line where it is not."""

from __future__ import annotations

import csv
import json
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.errors import WorkloadError
from workloads.public_traces import PUBLIC_TRACES
from workloads.traces import TRACE_FORMATS, read_trace
from workloads.workload import Row

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
CSV_HEADER = "arrival_s,input_tokens,output_tokens\n"


def written(folder: Path, text: str | bytes, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


rows_in_order = st.lists(
    st.tuples(
        st.integers(0, 10**15),
        st.integers(1, 10**6),
        st.integers(1, 5000),
        st.integers(0, 5000),
        st.text("ab,;\"'é租🎵", max_size=5),
        st.integers(-(10**9), 10**9),
        st.none() | st.integers(0, 10**15),
        st.lists(st.integers(0, (1 << 63) - 1), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=12,
).map(
    lambda drawn: [
        Row(time - min(d[0] for d in drawn), prompt, output, output + extra, *rest)
        for time, prompt, output, extra, *rest in sorted(drawn, key=lambda d: d[0])
    ]
)


@settings(deadline=None)
@given(rows_in_order, st.sampled_from(["ttft_slo_ms", "deadline_ms"]))
def test_rows_survive_the_projects_own_csv(rows: list[Row], deadline: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["arrival_s", "input_tokens", "output_tokens", "max_tokens", "tenant", "priority", deadline]
            )
            for row in rows:
                slo_ms = "" if row.ttft_slo_ns is None else Decimal(row.ttft_slo_ns).scaleb(-6)
                writer.writerow([Decimal(row.arrival_ns).scaleb(-9), *row[1:6], slo_ms])
        assert read_trace(str(path)).rows == tuple(row._replace(prefix_ids=()) for row in rows)


@settings(deadline=None)
@given(rows_in_order)
def test_rows_survive_mooncakes_json_lines(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        lines = [
            f'{{"timestamp": {Decimal(row.arrival_ns).scaleb(-6):f}, "input_length": {row.prompt_tokens}, '
            f'"output_length": {row.output_tokens}, "hash_ids": {list(row.prefix_ids)}}}'
            for row in rows
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        read = read_trace(str(path))
        assert read.format_name == "mooncake"
        assert [row[:3] for row in read.rows] == [row[:3] for row in rows]
        assert [row.prefix_ids for row in read.rows] == [row.prefix_ids for row in rows]
        assert all(row.max_tokens == max(2048, row.output_tokens) for row in read.rows)


def test_azure_times_are_exact_and_relative_to_the_first(tmp_path: Path) -> None:
    read = read_trace(
        written(
            tmp_path, AZURE_HEADER + "2023-11-16 18:15:46.6805900,374,44\r\n\r\n2023-11-16 18:15:50.9951691,396,109"
        )
    )
    assert read.rows == (Row(0, 374, 44, 2048), Row(4_314_579_100, 396, 109, 2048))
    assert (read.format_name, read.recorded, read.reordered) == ("azure", True, 0)


def test_lengths_come_without_times_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.8\n2015,3000,5015,0.67\n"
    read = read_trace(written(tmp_path, text))
    assert (read.format_name, read.recorded) == ("lengths", False)
    assert read.rows == (Row(0, 3772, 54, 2048), Row(0, 2015, 3000, 3000))


def test_a_row_longer_than_the_default_declares_its_own_length(tmp_path: Path) -> None:
    read = read_trace(written(tmp_path, CSV_HEADER + "0,5,2047\n0,5,2048\n0,5,2049\n"))
    assert [row.max_tokens for row in read.rows] == [2048, 2048, 2049]


def test_rows_out_of_order_are_sorted_stably_and_counted(tmp_path: Path) -> None:
    read = read_trace(written(tmp_path, CSV_HEADER + "2,1,1\n1,2,1\n3,3,1\n1,4,1\n2,5,1\n"))
    assert [row.prompt_tokens for row in read.rows] == [2, 4, 1, 5, 3]
    assert [row.arrival_ns for row in read.rows] == [0, 0, 10**9, 10**9, 2 * 10**9]
    assert read.reordered == 3


def test_columns_may_stand_in_any_order_with_spaces_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufefftenant, output_tokens ,arrival_s,input_tokens\n acme , 7 ,0.5,3\n"
    assert read_trace(written(tmp_path, text)).rows == (Row(0, 3, 7, 2048, "acme"),)


def test_an_empty_priority_or_objective_says_nothing(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,priority,ttft_slo_ms\n0,3,7,,\n0,3,7,-2,250.5\n"
    first, second = read_trace(written(tmp_path, text)).rows
    assert (first.priority, first.ttft_slo_ns) == (0, None)
    assert (second.priority, second.ttft_slo_ns) == (-2, 250_500_000)


def test_mooncakes_lines_may_lack_hash_ids(tmp_path: Path) -> None:
    text = '{"timestamp": 0, "input_length": 5, "output_length": 1}\n'
    assert read_trace(written(tmp_path, text)).rows[0].prefix_ids == ()


def test_a_named_format_is_taken_as_named(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,num_prefill_tokens,num_decode_tokens\n0,1,2,3,4\n"
    assert read_trace(written(tmp_path, text), "lengths").rows == (Row(0, 3, 4, 2048),)


def complaint(path: str, trace_format: str | None = None) -> str:
    """What reading complains of, without the folder; held to one line."""
    with pytest.raises(WorkloadError) as caught:
        read_trace(path, trace_format)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    return message.replace(str(Path(path).parent) + "/", "")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("0,5,abc\n", "trace.csv row 2, column output_tokens: value is 'abc'; must be a whole number from 1 to"),
        ("0,5,1\n0,12.0,1\n", "trace.csv row 3, column input_tokens: value is '12.0'; must be a whole number"),
        ("0,5,-3\n", "trace.csv row 2, column output_tokens: value is '-3'; must be >= 1"),
        ("0,5,0\n", "trace.csv row 2, column output_tokens: value is '0'; must be >= 1"),
        ("0,0,1\n", "trace.csv row 2, column input_tokens: value is '0'; must be >= 1"),
        ("0,1_0,1\n", "trace.csv row 2, column input_tokens: value is '1_0'; must be a whole number"),
        ("0,٣,1\n", "trace.csv row 2, column input_tokens: value is '٣'; must be a whole number"),
        ("0,²,1\n", "trace.csv row 2, column input_tokens: value is '²'; must be a whole number"),
        ("0,,1\n", "trace.csv row 2, column input_tokens: value is ''; must be a whole number"),
        ("0," + "9" * 5000 + ",1\n", "column input_tokens: value is '99999"),
        ("0,1000000001,1\n", "column input_tokens: value is '1000000001'; must be a whole number from 1 to"),
        ("soon,5,1\n", "trace.csv row 2, column arrival_s: value is 'soon'; must be a number of seconds >= 0"),
        ("-1,5,1\n", "trace.csv row 2, column arrival_s: value is '-1'; must be a number of seconds >= 0"),
        ("1e300,5,1\n", "trace.csv row 2, column arrival_s: value is '1e300'"),
        ("0,5\n", "trace.csv row 2: has 2 columns; the header has 3"),
        ("\n\n0,5,1\n\n0,5,1,9\n", "trace.csv row 6: has 4 columns; the header has 3"),
        ('0,5,"1\n', "trace.csv row 2: is not valid CSV"),
        ("", "trace.csv: has a header but no requests"),
        ("0,5,1\n99999999999,5,1\n", "trace.csv: its arrivals lie more than 146 years apart"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_file_row_column_and_value(tmp_path: Path, body: str, expected: str) -> None:
    assert expected in complaint(written(tmp_path, CSV_HEADER + body))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "is empty; a trace has at least one request"),
        (b" \n\n", "is empty"),
        (b"a,b,c\n1,2,3\n", "row 1: unknown trace format, columns: a, b, c; known formats: csv (arrival_s, "),
        (b"[1, 2]\n", "row 1: unknown trace format"),
        (b'{"a": 1}\n', "row 1: unknown trace format, columns: a; known formats"),
        (b"TIMESTAMP,ContextTokens\n", "row 1: no column GeneratedTokens; format azure, columns: TIMESTAMP, "),
        (b"arrival_s,input_tokens,output_token\n", "row 1: no column output_tokens; is it 'output_token'? format csv"),
        (b"arrival_s,input_tokens,output_tokens,max_token\n",
         "row 1: unknown column 'max_token'; did you mean 'max_tokens'?"),
        (b"arrival_s,input_tokens,output_tokens,arrival_s\n", "row 1: column arrival_s stands there twice"),
        (b"arrival_s,input_tokens,output_tokens,max_tokens\n0,5,30,20\n",
         "row 2, column max_tokens: value is '20'; must not be less than the row's output of 30 tokens"),
        (b"arrival_s,input_tokens,output_tokens,priority\n0,5,3,high\n",
         "row 2, column priority: value is 'high'; must be a whole number from -1,000,000,000 to 1,000,000,000"),
        (b"arrival_s,input_tokens,output_tokens,priority\n0,5,3,1.5\n", "row 2, column priority: value is '1.5'"),
        (b"arrival_s,input_tokens,output_tokens,ttft_slo_ms\n0,5,3,-1\n",
         "row 2, column ttft_slo_ms: value is '-1'; must be a number of milliseconds >= 0"),
        (b"arrival_s,input_tokens,output_tokens,deadline_ms\n0,5,3,1e14\n",
         "row 2, column deadline_ms: value is '1e14'; must be less than 146 years"),
        (b"arrival_s,input_tokens,output_tokens,deadline_ms,ttft_slo_ms\n0,5,3,1,1\n",
         "row 1: ttft_slo_ms and deadline_ms are the same; leave one of them out"),
        (AZURE_HEADER.encode() + b"2023-11-16 25:00:00,5,1\n",
         "row 2, column TIMESTAMP: value is '2023-11-16 25:00:00'; must have hours to 23"),
        (AZURE_HEADER.encode() + b"2023-11-16 18:15:46,\xe9,1\n",
         "row 2: is not UTF-8 text (byte 0xe9); save it as plain UTF-8"),
        ((CSV_HEADER + "0,1,1\n").encode("utf-16"), "row 1: is not UTF-8 text (byte 0xff)"),
    ],
)  # fmt: skip
def test_bad_files_are_told_what_they_are(tmp_path: Path, text: bytes, expected: str) -> None:
    assert complaint(written(tmp_path, text)).startswith("trace.csv")
    assert expected in complaint(written(tmp_path, text))


GOOD = '{"timestamp": 0, "input_length": 5, "output_length": 1}\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + '{"timestamp": 0, "input_len\n', "row 2: is not valid JSON (Unterminated string"),
        ('{"timestamp": 0, "input_len\n', "row 1: is not valid JSON"),
        (GOOD + "\n[1]\n", "row 3: is '[1]'; must be a JSON object, one a line"),
        (GOOD + "[" * 100_000 + "\n", "row 2: is not valid JSON"),
        (GOOD + '{"timestamp": 0, "output_length": 1}\n', "row 2: no field input_length; fields: timestamp, "),
        (GOOD.replace("5", "5.0"), "row 1, field input_length: value is '5.0'; must be a whole number"),
        (GOOD.replace("5", '"5"'), "row 1, field input_length: value is '5'; must be a whole number"),
        (GOOD.replace("5", "true"), "row 1, field input_length: value is True; must be a whole number"),
        (GOOD.replace("5", "null"), "row 1, field input_length: value is None; must be a whole number"),
        (GOOD.replace("1", "0"), "row 1, field output_length: value is 0; must be >= 1"),
        (GOOD.replace("0", "-4"), "row 1, field timestamp: value is -4; must be a number of milliseconds >= 0"),
        (GOOD.replace("0", "NaN"), "row 1, field timestamp: value is nan; must be a number of milliseconds"),
        (GOOD.replace("0", "1e400"), "row 1, field timestamp: value is '1E+400'"),
        (GOOD.replace("}", ', "hash_ids": 7}'), "row 1, field hash_ids: value is 7; must be a list of whole numbers"),
        (GOOD.replace("}", ', "hash_ids": [1, -2]}'), "row 1, field hash_ids: value is [1, -2]; must be a list"),
        (GOOD.replace("}", ', "hash_ids": [true]}'), "row 1, field hash_ids: value is [True]; must be a list"),
        (GOOD.replace("5", "9" * 5000), "row 1: is not valid JSON (no readable value)"),
    ],
)  # fmt: skip
def test_bad_json_lines_are_named_by_row_field_and_value(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in complaint(written(tmp_path, text, "trace.jsonl"))


def test_missing_files_folders_and_formats_are_told_apart(tmp_path: Path) -> None:
    assert "gone.csv: no such file; give the path of a trace" in complaint(str(tmp_path / "gone.csv"))
    assert "is a folder; give a trace file" in complaint(str(tmp_path))
    assert "cannot be read" in complaint(str(tmp_path / ("x" * 5000)))
    path = written(tmp_path, CSV_HEADER + "0,1,1\n")
    assert "unknown trace format 'azur'; did you mean 'azure'? formats: csv, azure, lengths, mooncake" in complaint(
        path, "azur"
    )
    assert "row 1: no column TIMESTAMP; format azure, columns: arrival_s" in complaint(path, "azure")
    assert "row 1: is not valid JSON" in complaint(path, "mooncake")


def test_a_missing_public_trace_is_told_where_to_get_it(tmp_path: Path) -> None:
    for public in PUBLIC_TRACES:
        assert f"no such file; it can be had from {public.url}" in complaint(str(tmp_path / public.file))


def test_every_format_is_recognised_by_its_own_columns(tmp_path: Path) -> None:
    values = {"arrival_s": "1", "TIMESTAMP": "2024-01-01 00:00:00"}
    for name, fields in TRACE_FORMATS.items():
        if name == "mooncake":
            text = json.dumps(dict.fromkeys(fields, 1))
        else:
            text = ",".join(fields) + "\n" + ",".join(values.get(field, "1") for field in fields)
        assert read_trace(written(tmp_path, text)).format_name == name


@pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not next to the checkout")
@pytest.mark.parametrize(
    ("file", "count", "prompt", "output"),
    [
        ("AzureLLMInferenceTrace_conv.csv", 19_366, (2, 1020, 14050), (7, 129, 1000)),
        ("AzureLLMInferenceTrace_code.csv", 8_819, (3, 1469, 7437), (6, 13, 1899)),
        ("mooncake_synthetic_trace.jsonl", 3_993, (13, 11587, 191378), (1, 69, 893)),
        ("arxiv_summarization_llama2_lengths.csv", 28_257, (1, 2730, 4054), (5, 167, 4056)),
    ],
)
def test_public_traces_read_whole_and_are_recognised(
    file: str, count: int, prompt: tuple[int, ...], output: tuple[int, ...]
) -> None:
    read = read_trace(str(TRACES / file))
    assert len(read.rows) == count
    for column, expected in ((1, prompt), (2, output)):
        lengths = sorted(int(row[column]) for row in read.rows)
        assert (lengths[0], lengths[count // 2], lengths[-1]) == expected
    assert read.sha256 in {public.sha256 for public in PUBLIC_TRACES if public.file == file}


@pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not next to the checkout")
def test_the_mooncake_trace_names_every_block_of_its_prompts() -> None:
    rows = read_trace(str(TRACES / "mooncake_synthetic_trace.jsonl")).rows
    assert all(len(row.prefix_ids) == -(-row.prompt_tokens // 512) for row in rows)
    assert len({block for row in rows for block in row.prefix_ids}) < sum(len(row.prefix_ids) for row in rows) / 2


@pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not next to the checkout")
def test_the_conversation_trace_spans_exactly_what_its_timestamps_say() -> None:
    read = read_trace(str(TRACES / "AzureLLMInferenceTrace_conv.csv"))
    # 18:15:46.6805900 to 19:14:08.4025270
    assert (read.rows[0].arrival_ns, read.rows[-1].arrival_ns) == (0, 3_501_721_937_000)
