from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import BasicTextSRStorage, EnhancedSRStorage

from dicom_node.results import uids
from dicom_node.results.record import DraftRecord
from dicom_node.storage import IMPLEMENTATION_CLASS_UID
from tests.dicom_node.results.samples import (
    ALGORITHM,
    LATERAL,
    LATERAL_SERIES,
    chosen,
    record,
    reference,
    second_record,
)

NODE = "2.25.291139443465637205120626605047963170410"
MODEL = "2.25.100975697581821466529635332836497419650"
INSTANCE = "2.25.335926190702513551437180610206722885963"
SERIES = "2.25.47554204931976240869559315852992390512"
IMPLEMENTATION = "2.25.52918799225017122386099352312751159349"


def test_uids_never_change_between_releases() -> None:
    # A changed derivation would send a second report for every study that is sent again.
    assert uids.node_uid("install-0001") == NODE
    assert uids.device_uid(ALGORITHM) == MODEL
    assert uids.sop_instance_uid(record(), BasicTextSRStorage) == INSTANCE
    assert uids.series_instance_uid(record(), BasicTextSRStorage) == SERIES
    assert IMPLEMENTATION_CLASS_UID == IMPLEMENTATION


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(st.text())
def test_every_derived_uid_is_legal(name: str) -> None:
    uid = uids.node_uid(name)
    assert uid.is_valid
    assert re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid)  # PS3.5 B.2


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(record(findings="Clear lungs."), id="text"),
        pytest.param(record(impression="Normal."), id="impression"),
        pytest.param(record(history=None), id="history"),
        pytest.param(record(kind="pdf"), id="kind"),
        pytest.param(record(algorithm=replace(ALGORITHM, digest="f" * 64)), id="weights"),
        pytest.param(record(algorithm=replace(ALGORITHM, parameters={})), id="quantisation"),
        pytest.param(
            record(inputs=(chosen(reference(LATERAL, LATERAL_SERIES)),)), id="another input"
        ),
        pytest.param(
            record(version=2, predecessor=reference("2.25.8", "2.25.7")), id="another version"
        ),
    ],
)
def test_another_content_is_another_instance_in_another_series(other: DraftRecord) -> None:
    for derive in (uids.sop_instance_uid, uids.series_instance_uid):
        assert derive(other, BasicTextSRStorage) != derive(record(), BasicTextSRStorage)


def test_each_sop_class_has_its_own_instance_uid() -> None:
    assert uids.sop_instance_uid(record(), EnhancedSRStorage) != INSTANCE


def test_the_order_of_inputs_and_parameters_is_no_content() -> None:
    parameters = dict(reversed(list(ALGORITHM.parameters.items())))
    second = second_record()
    turned = replace(second, inputs=second.inputs[::-1])
    turned = replace(turned, algorithm=replace(ALGORITHM, parameters=parameters))
    assert uids.sop_instance_uid(turned, BasicTextSRStorage) == uids.sop_instance_uid(
        second, BasicTextSRStorage
    )


def test_names_that_run_together_stay_apart() -> None:
    one = replace(ALGORITHM, name="A|B", version="C")
    other = replace(ALGORITHM, name="A", version="B|C")
    assert uids.device_uid(one) != uids.device_uid(other)


def test_series_instance_and_device_uids_differ_from_each_other() -> None:
    assert len({INSTANCE, SERIES, MODEL, NODE, IMPLEMENTATION}) == 5
