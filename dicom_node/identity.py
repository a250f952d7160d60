"""Whose is it: how what two objects say of patient and order is compared, by keys and never names.

Used wherever one thing finds another: a report its study, an order its study. A side that says
nothing contradicts nothing; whoever needs more than that asks for it.
"""

from __future__ import annotations

from dicom_node.storage import Identity

#: In place of a key of a study: its instances name several patients. Written by the function
#: ``register_instances``.
MIXED = "mixed"


def differ(one: str, other: str) -> bool:
    """Do both say something, and not the same?"""
    return bool(one and other and one != other)


def is_another_patient(said: Identity, study: Identity) -> bool:
    """Is the study known to be of another patient?"""
    if MIXED in (study.patient_id_key, study.patient_issuer_key):
        return True  # images of several patients: whoever is meant, one of them is another
    ids = differ(said.patient_id_key, study.patient_id_key)
    return ids or differ(said.patient_issuer_key, study.patient_issuer_key)


def is_same_patient(said: Identity, study: Identity) -> bool:
    """Do both name the patient, and the same?"""
    same = said.patient_id_key == study.patient_id_key != ""
    return same and not is_another_patient(said, study)


def is_same_order(said: Identity, study: Identity) -> bool:
    """Do both have the same accession number, of no other issuer?"""
    same = said.accession_key == study.accession_key != ""
    return same and not differ(said.accession_issuer_key, study.accession_issuer_key)
