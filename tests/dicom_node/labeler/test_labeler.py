"""Reports in words become findings: each rule with a sentence that it is for and a trap."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import labeler
from dicom_node.labeler import Finding, Label, Presence
from dicom_node.labeler.vocabulary import LABELS, PHRASES

HERE, AWAY, PERHAPS = Presence.PRESENT, Presence.ABSENT, Presence.UNDETERMINED

EFFUSION, PNEUMOTHORAX = Finding.PLEURAL_EFFUSION, Finding.PNEUMOTHORAX
CONSOLIDATION, PNEUMONIA = Finding.CONSOLIDATION, Finding.PNEUMONIA
ATELECTASIS, CARDIOMEGALY = Finding.ATELECTASIS, Finding.CARDIOMEGALY
NODULE, EDEMA, FRACTURE = Finding.NODULE, Finding.EDEMA, Finding.FRACTURE


def says(text: str, **presence: Presence) -> None:
    """What a text says of these findings, named as in ``Finding``, and of no others."""
    assert labeler.findings(text) == {Finding[name]: value for name, value in presence.items()}


# -- negation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "No focal consolidation, effusion or pneumothorax.",
        "no consolidation, no effusion, no pneumothorax",
        "There is no evidence of consolidation, pleural effusion, or pneumothorax.",
        "Lungs without consolidation, effusion, or pneumothorax.",
        "Free of consolidation, effusion and pneumothorax.",
        "Negative for consolidation, effusion or pneumothorax.",
        "The film is negative for consolidation, effusion or pneumothorax.",
        "Absence of consolidation, effusion and pneumothorax.",
        "Neither consolidation nor effusion nor pneumothorax.",
        "Consolidation, effusion or pneumothorax is not seen.",
        "Consolidation: none. Effusion: No. Pneumothorax: absent.",
        "Pneumothorax, effusion and consolidation are no longer identified.",
        "No consolidation, effusion\nor pneumothorax.",
        "No consolidation, effusion or\nPneumothorax.",
        "No\nConsolidation,\nEffusion or\nPneumothorax.",
        "NO CONSOLIDATION, EFFUSION OR PNEUMOTHORAX",
        "no XXXX consolidation, XXXX effusion or pneumothorax",
    ],
)
def test_a_denial_holds_for_the_whole_list(text: str) -> None:
    says(text, CONSOLIDATION=AWAY, PLEURAL_EFFUSION=AWAY, PNEUMOTHORAX=AWAY)


@pytest.mark.parametrize(
    "text",
    [
        "No pneumothorax but a small effusion.",
        "No pneumothorax; small effusion.",
        "No pneumothorax, however an effusion has formed.",
        "No pneumothorax, although effusions persist.",
        "No pneumothorax, with a small effusion.",
        "No pneumothorax with small effusion.",
        "There is no pneumothorax and there is an effusion.",
        "No pneumothorax is seen, effusions are small.",
        "No pneumothorax and a small effusion.",
        "No pneumothorax, stable effusion.",
        "No pneumothorax, the effusion is stable.",
        "No pneumothorax following drainage of the effusion.",
        "No pneumothorax. Effusion.",
        "No pneumothorax.Effusion.",
        "1. No pneumothorax 2.5 cm above. 2. Effusion.",
        "No pneumothorax\n2. Effusion",
        "No pneumothorax\n\nSmall effusion",
        "Effusion, no pneumothorax.",
        "Effusion without pneumothorax.",
        "Effusion persists, pneumothorax is not seen.",
        "Pneumothorax is not seen and effusion persists.",
        "Effusion: small. Pneumothorax: none.",
    ],
)
def test_a_denial_ends_with_its_clause(text: str) -> None:
    says(text, PNEUMOTHORAX=AWAY, PLEURAL_EFFUSION=HERE)


@pytest.mark.parametrize(
    "text",
    [
        "The effusion has resolved.",
        "Interval resolution of the effusion.",
        "Resolved effusion.",
        "The effusion has completely cleared.",
        "The previously seen effusion is no longer present.",
        "Effusion absent.",
    ],
)
def test_what_has_gone_is_absent(text: str) -> None:
    says(text, PLEURAL_EFFUSION=AWAY)


@pytest.mark.parametrize(
    "text",
    [
        "No change in the left effusion.",
        "No significant interval change in the effusion.",
        "There has been no interval increase in the left effusion.",
        "No evidence of progression of the effusion.",
        "Without improvement of the effusion.",
        "The effusion has not resolved.",
        "The effusion is not significantly changed.",
        "Not only small is the effusion.",
        "No doubt an effusion.",
        "The previously noted effusion is unchanged.",
        "Effusion, not identified on the lateral view.",
        "Effusion is not well seen.",
    ],
)
def test_what_only_looks_like_a_denial_is_none(text: str) -> None:
    says(text, PLEURAL_EFFUSION=HERE)


def test_a_finding_between_no_and_change_is_denied_all_the_same() -> None:
    says("No effusion or change.", PLEURAL_EFFUSION=AWAY)


def test_a_removed_device_is_absent_and_the_next_one_is_not() -> None:
    says("The endotracheal tube has been removed.", SUPPORT_DEVICE=AWAY)
    says("Interval removal of the chest tube.", SUPPORT_DEVICE=AWAY)
    says("No pneumothorax after chest tube placement.", PNEUMOTHORAX=AWAY, SUPPORT_DEVICE=HERE)


# -- doubt -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "This may represent pneumonia.",
        "Possible pneumonia.",
        "Could be pneumonia.",
        "Question of pneumonia.",
        "? pneumonia",
        "Pneumonia?",
        "Rule out pneumonia.",
        "Cannot exclude pneumonia.",
        "Pneumonia cannot be excluded.",
        "Pneumonia is not excluded.",
        "Concerning for pneumonia.",
        "Appearances suggesting pneumonia.",
        "Pneumonia is unlikely.",
        "Unlikely pneumonia.",
        "Pneumonia is suspected.",
        "Contusion versus pneumonia.",
        "Pneumonia vs. contusion.",
        "Contusion vs. pneumonia.",
        "The differential diagnosis includes contusion and pneumonia.",
    ],
)
def test_doubt_is_undetermined(text: str) -> None:
    says(text, PNEUMONIA=PERHAPS)


@pytest.mark.parametrize(
    "text",
    [
        "Consistent with pneumonia.",
        "Probable pneumonia.",
        "Most likely pneumonia.",
        "Most suggestive of pneumonia.",
        "Pneumonia. Possible contusion.",
        "Pneumonia, which may be old.",
    ],
)
def test_a_leaning_or_a_doubt_about_something_else_is_none(text: str) -> None:
    says(text, PNEUMONIA=HERE)


@pytest.mark.parametrize(
    "text",
    [
        "No findings suspicious for pneumonia.",
        "No sign of possible pneumonia.",
        "No changes to suggest pneumonia.",
        "There is no suspected pneumonia.",
    ],
)
def test_a_denied_doubt_is_a_denial(text: str) -> None:
    says(text, PNEUMONIA=AWAY)


def test_a_doubt_after_a_denial_and_a_comma_stays_a_doubt() -> None:
    says("No effusion, possible pneumonia.", PLEURAL_EFFUSION=AWAY, PNEUMONIA=PERHAPS)


def test_a_doubt_holds_for_the_list_that_follows_and_not_for_what_is_seen() -> None:
    text = "Patchy opacity, which may represent atelectasis or pneumonia."
    says(text, OPACITY=HERE, ATELECTASIS=PERHAPS, PNEUMONIA=PERHAPS)


def test_versus_makes_its_two_sides_doubtful_and_no_third() -> None:
    text = "Cardiomegaly and effusion versus pleural thickening."
    says(text, CARDIOMEGALY=HERE, PLEURAL_EFFUSION=PERHAPS, PLEURAL_THICKENING=PERHAPS)


# -- what is not said of this image ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "History of pneumonia.",
        "H/o pneumonia.",
        "Recent pneumonia.",
        "If pneumonia is suspected, a second view is advised.",
    ],
)
def test_history_and_conditions_say_nothing(text: str) -> None:
    says(text)


def test_old_things_that_are_still_seen_are_present() -> None:
    says("Old healed rib fractures.", FRACTURE=HERE)
    says("Prior rib fracture. Chronic scar.", FRACTURE=HERE, SCAR=HERE)


# -- words for normal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Heart size normal.",
        "The heart is normal in size.",
        "Heart: normal.",
        "Normal heart size.",
        "The heart is not enlarged.",
        "The cardiac silhouette is within normal limits.",
    ],
)
def test_a_normal_heart_is_no_cardiomegaly(text: str) -> None:
    says(text, CARDIOMEGALY=AWAY)


def test_a_heart_at_the_border_is_undetermined_and_a_borderline_one_is_enlarged() -> None:
    says("Heart size is at the upper limits of normal.", CARDIOMEGALY=PERHAPS)
    says("Heart size is normal to mildly enlarged.", CARDIOMEGALY=PERHAPS)
    says("Borderline heart size.", CARDIOMEGALY=HERE)


def test_a_normal_cardiomediastinal_silhouette_denies_both() -> None:
    text = "The cardiomediastinal silhouette is unremarkable."
    says(text, CARDIOMEGALY=AWAY, ENLARGED_CARDIOMEDIASTINUM=AWAY)


def test_clear_lungs_deny_opacities_and_one_clear_lung_does_not() -> None:
    says("The lungs are clear.", OPACITY=AWAY)
    says("Right lung is clear.")
    says("The lungs are not clear.")


def test_a_nodule_in_clear_lungs_is_still_there() -> None:
    says("The lungs are clear except for a nodule.", OPACITY=AWAY, NODULE=HERE)


# -- vocabulary ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("The heart is mildly enlarged.", "CARDIOMEGALY"),
        ("The heart seems a little large.", "CARDIOMEGALY"),
        ("Enlarged cardiac silhouette.", "ENLARGED_CARDIAC_SILHOUETTE"),
        ("Collapse of the left lower lobe.", "ATELECTASIS"),
        ("Widened mediastinum.", "ENLARGED_CARDIOMEDIASTINUM"),
        ("Biapical pleural-parenchymal thickening.", "PLEURAL_THICKENING"),
        ("Pulmonary oedema.", "EDEMA"),
        ("Right lower lobe air-space disease.", "OPACITY"),
        ("Hiatal hernia.", "HERNIA"),
        ("PICC tip in the SVC.", "SUPPORT_DEVICE"),
    ],
)
def test_a_finding_goes_by_several_names(text: str, finding: str) -> None:
    says(text, **{finding: HERE})


@pytest.mark.parametrize(
    "text",
    ["Pericardial effusion.", "Subcutaneous emphysema.", "Soft tissue edema.", "Cystic fibrosis."],
)
def test_other_things_of_the_same_name_are_not_taken(text: str) -> None:
    says(text)


def test_a_hydropneumothorax_is_both() -> None:
    says("Left hydropneumothorax.", PNEUMOTHORAX=HERE, PLEURAL_EFFUSION=HERE)


def test_every_finding_has_phrases_and_every_label_a_finding() -> None:
    assert set(PHRASES) == set(Finding)
    assert set(LABELS.values()) == set(Label)


# -- reports ---------------------------------------------------------------------------------------


def test_present_outweighs_doubt_and_doubt_outweighs_absence() -> None:
    says("No effusion. Possible effusion.", PLEURAL_EFFUSION=PERHAPS)
    says("No effusion. Possible effusion. Effusion.", PLEURAL_EFFUSION=HERE)


def test_labels_put_findings_together() -> None:
    text = "No mass. Small nodule. No infiltrate. Possible pleural thickening. Hiatal hernia."
    assert labeler.labels(text) == {
        Label.LUNG_LESION: HERE,
        Label.LUNG_OPACITY: AWAY,
        Label.PLEURAL_OTHER: PERHAPS,
    }


def test_mentions_come_in_the_texts_order_with_their_place() -> None:
    text = "No  effusion.\n\n Mild  cardiac \n enlargement."
    assert [(text[slice(*m.span)], m.presence) for m in labeler.mentions(text)] == [
        ("effusion", AWAY),
        ("cardiac \n enlargement", HERE),
    ]


def test_a_text_without_findings_says_nothing() -> None:
    assert labeler.mentions("") == ()
    assert labeler.labels("Two views of the chest. No acute abnormality.") == {}


# -- whatever is written ---------------------------------------------------------------------------

_words = st.sampled_from(
    re.findall(
        r"\S+",
        "no without not may possible effusion pneumothorax heart size is are normal enlarged lungs "
        "clear nodule versus and or but , ; . ? : - 1. XXXX history of vs. seen No The suspected",
    )
)
_texts = st.text() | st.lists(_words | st.sampled_from(["\n", "\r\n"]), max_size=40).map(" ".join)


@given(_texts)
def test_spans_lie_in_the_text_in_order(text: str) -> None:
    found = labeler.mentions(text)
    spans = [mention.span for mention in found]
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert spans == sorted(spans)
    assert all(not text[start].isspace() and not text[end - 1].isspace() for start, end in spans)


@given(_texts)
def test_blanks_may_be_doubled(text: str) -> None:
    assert labeler.labels(re.sub(r"(\s)", r"\1\1", text)) == labeler.labels(text)


@given(_texts)
def test_labels_come_from_findings_and_findings_from_mentions(text: str) -> None:
    said = labeler.findings(text)
    assert set(said) == {mention.finding for mention in labeler.mentions(text)}
    assert set(labeler.labels(text)) == {LABELS[finding] for finding in said if finding in LABELS}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", ["no ", "effusion, ", "heart size is ", " ", "\n", "?", "- ", "is not seen ", "a"]
)
def test_a_text_without_end_takes_no_time_without_end(piece: str) -> None:
    labeler.labels(piece * 20_000)
