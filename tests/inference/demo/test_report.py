"""Reports of phantoms: what is written can be read back, also when a model blends templates."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.demo import report
from inference.demo.scene import LABELS, scene

SIZED = [label for label in LABELS if label.startswith(("effusion", "pneumothorax"))]

label_sets = st.frozensets(st.sampled_from(LABELS))
all_sizes = st.fixed_dictionaries({label: st.sampled_from(["small", "large"]) for label in SIZED})


@given(label_sets, all_sizes, st.none() | st.integers(0, 2**40))
def test_any_findings_in_any_wording_can_be_read_back(
    labels: frozenset[str], sizes: dict[str, str], seed: int | None
) -> None:
    text = report.write(labels, sizes, seed=seed)
    assert report.parse(text) == labels
    assert report.parse_sizes(text) == {k: v for k, v in sizes.items() if k in labels}


def test_three_thousand_drawn_reports_can_be_read_back() -> None:
    for seed in range(3000):
        one = scene(seed)
        text = report.write(one.labels, one.sizes, seed=seed)
        assert report.parse(text) == one.labels
        assert report.parse_sizes(text) == one.sizes


def test_a_normal_report_in_the_first_wording() -> None:
    assert report.write(frozenset(), {}, seed=None) == (
        "The heart size is normal. The lungs are clear. "
        "There is no pleural effusion or pneumothorax."
    )


def test_sentences_come_in_a_fixed_order() -> None:
    labels = frozenset(
        {"pacemaker", "effusion_left", "nodule_right_mid", "consolidation_LUL", "cardiomegaly"}
    )
    assert report.write(labels, {"effusion_left": "small"}, seed=None) == (
        "The heart is enlarged. There is a consolidation in the left upper lobe. "
        "There is a nodule in the right mid zone. There is a small left pleural effusion. "
        "There is no pneumothorax. A left pacemaker is present."
    )


def test_a_nodule_alone_denies_consolidation() -> None:
    text = report.write(frozenset({"nodule_left_upper"}), {}, seed=None)
    assert "No consolidation is seen." in text
    assert "clear" not in text


def test_the_same_seed_gives_the_same_wording_and_seeds_differ() -> None:
    texts = [report.write(frozenset(), {}, seed=seed) for seed in range(20)]
    assert texts == [report.write(frozenset(), {}, seed=seed) for seed in range(20)]
    assert len(set(texts)) > 3


def test_the_first_wording_is_drawn_two_times_of_three() -> None:
    texts = (report.write(frozenset(), {}, seed=seed) for seed in range(2000))
    first = Counter(text.startswith("The heart size") for text in texts)
    assert first[True] / 2000 == pytest.approx(0.65, abs=0.05)


@pytest.mark.parametrize("label", LABELS)
def test_a_query_states_one_finding_and_nothing_else(label: str) -> None:
    assert report.parse(report.SENTENCES[label]) == {label}
    assert report.parse_sizes(report.SENTENCES[label]) == {}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("seed", [None, *range(6)])
def test_a_positive_sentence_states_one_finding(label: str, seed: int | None) -> None:
    size = "large" if label in SIZED else None
    text = report.positive(label, size, seed=seed)
    assert report.parse(text) == {label}
    assert report.parse_sizes(text) == ({label: "large"} if label in SIZED else {})


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        pytest.param("The heart size is enlarged.", {"cardiomegaly"}, id="blend of both wordings"),
        pytest.param("The cardiac silhouette is enlarged.", {"cardiomegaly"}, id="blended noun"),
        pytest.param("Enlarged heart", {"cardiomegaly"}, id="no full stop"),
        pytest.param("No cardiomegaly.", set(), id="negated heart"),
        pytest.param(
            "There is a consolidation in the left lower zone.",
            {"consolidation_LLL"},
            id="zone for lobe",
        ),
        pytest.param(
            "A nodule is seen in the right middle lobe.", {"nodule_right_mid"}, id="lobe for zone"
        ),
        pytest.param("There is a consolidation in the left middle lobe.", set(), id="no such lobe"),
        pytest.param("There is a nodule.", set(), id="finding without a place"),
        pytest.param("A pleural effusion is seen on the left", {"effusion_left"}, id="side last"),
        pytest.param(
            "There are small left and right pleural effusions.",
            {"effusion_left", "effusion_right"},
            id="both sides named",
        ),
        pytest.param(
            "Bilateral pneumothoraces.",
            {"pneumothorax_left", "pneumothorax_right"},
            id="bilateral",
        ),
        pytest.param(
            "A large left pleural effusion and pneumothorax.",
            {"effusion_left", "pneumothorax_left"},
            id="two findings in a sentence",
        ),
        pytest.param(
            "THERE IS AN ENDOTRACHEAL TUBE; A CATHETER IS SEEN",
            {"endotracheal_tube", "central_venous_catheter"},
            id="capitals and semicolon",
        ),
        pytest.param("The lungs are clear without nodules in the left mid zone.", set(), id="neg"),
        pytest.param("", set(), id="empty"),
    ],
)
def test_blends_are_read_by_noun_and_place(text: str, labels: set[str]) -> None:
    assert report.parse(text) == labels


def test_a_sentence_with_both_sizes_states_none() -> None:
    text = "Small left and large right pleural effusions."
    assert report.parse(text) == {"effusion_left", "effusion_right"}
    assert report.parse_sizes(text) == {}


WORDS = sorted({word for s in report.SENTENCES.values() for word in s.lower().split()})


@given(st.text() | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_text_can_be_read(text: str) -> None:
    assert report.parse(text) <= set(LABELS)
    assert report.parse_sizes(text).keys() <= set(SIZED)


def test_score_counts_findings_over_all_reports() -> None:
    score = report.score(
        [
            (frozenset({"cardiomegaly", "pacemaker"}), frozenset({"cardiomegaly"})),
            (frozenset({"effusion_left"}), frozenset({"effusion_right"})),
            (frozenset(), frozenset()),
            (frozenset({"pacemaker"}), frozenset({"pacemaker"})),
        ]
    )
    assert score.precision == pytest.approx(2 / 3)
    assert score.recall == pytest.approx(2 / 4)
    assert score.f1 == pytest.approx(4 / 7)
    assert score.exact == pytest.approx(2 / 4)
    assert score.n == 4


@pytest.mark.parametrize("pairs", [[], [(frozenset(), frozenset())]])
def test_score_of_nothing_is_zero_and_not_an_error(
    pairs: list[tuple[frozenset[str], frozenset[str]]],
) -> None:
    score = report.score(pairs)
    assert (score.precision, score.recall, score.f1) == (0, 0, 0)
