"""Dates and times of DICOM and HL7."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.reports.timestamps import day, moment

EAST = timezone(timedelta(hours=5, minutes=30))
WEST = timezone(-timedelta(hours=3))


@pytest.mark.parametrize(
    ("text", "offset", "meant"),
    [
        ("20240311", "", datetime(2024, 3, 11, tzinfo=UTC)),
        ("202403111015", "", datetime(2024, 3, 11, 10, 15, tzinfo=UTC)),
        ("20240311101530.25 ", "", datetime(2024, 3, 11, 10, 15, 30, 250000, tzinfo=UTC)),
        ("20240311101530+0530", "-0300", datetime(2024, 3, 11, 10, 15, 30, tzinfo=EAST)),
        ("2024031110", "-0300", datetime(2024, 3, 11, 10, tzinfo=WEST)),
        ("2024031110", "here", datetime(2024, 3, 11, 10, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_with_its_zone(text: str, offset: str, meant: datetime) -> None:
    assert moment(text, offset) == meant


@pytest.mark.parametrize("text", ["", "2024", "20241399", "20240311256100", "20240311+9999"])
def test_what_is_no_day_is_none(text: str) -> None:
    assert moment(text) is None
    assert day(text) == ""


def test_the_day_of_a_time_is_its_date_as_written() -> None:
    assert day("20240311233000-0500") == "20240311"


@given(st.text(st.sampled_from("0123456789.+-² "), max_size=30), st.text("+-0129", max_size=5))
def test_no_text_raises(text: str, offset: str) -> None:
    assert moment(text, offset) is None or day(text)
