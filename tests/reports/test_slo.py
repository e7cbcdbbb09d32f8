from __future__ import annotations

import numpy as np
import pytest

from reports.slo import Slo, SloError


def test_objectives_are_read_from_a_command_line() -> None:
    assert Slo.parse("ttft_ms=500, tpot_ms=50").limits_ms == {"ttft_ms": 500.0, "tpot_ms": 50.0}
    assert str(Slo.parse("ttft_ms=500,tpot_ms=50")) == "ttft_ms <= 500, tpot_ms <= 50"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tttf_ms=500", "did you mean ttft_ms"),
        ("ttft_ms", "has no limit; write it as ttft_ms=500"),
        ("ttft_ms=fast", "has the limit 'fast'"),
        ("ttft_ms=0", "must be > 0"),
        ("ttft_ms=nan", "must be > 0"),
        ("ttft_ms=1,ttft_ms=2", "given twice"),
        ("", "no objective given"),
    ],
)
def test_a_wrong_objective_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(SloError, match=message) as caught:
        Slo.parse(text)
    assert "\n" not in str(caught.value)


def test_a_request_is_good_only_if_it_meets_every_objective() -> None:
    latencies = {"ttft_ms": np.array([400.0, 600.0, 400.0]), "e2e_ms": np.array([900.0, 900.0, 2000.0])}
    assert Slo.parse("ttft_ms=500,e2e_ms=1000").met(latencies).tolist() == [True, False, False]


def test_an_undefined_tpot_breaks_no_objective() -> None:
    latencies = {"tpot_ms": np.array([np.nan, 60.0]), "e2e_ms": np.array([1.0, 1.0])}
    assert Slo.parse("tpot_ms=50").met(latencies).tolist() == [True, False]
