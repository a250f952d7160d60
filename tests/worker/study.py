"""Phantom studies in a node, as its SCP would have put them there."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node import account, jobs, studies
from dicom_node.account import Account
from dicom_node.jobs import Job
from dicom_node.storage import StoredInstance
from inference.demo.dicom import DemoPatient, to_dx
from inference.demo.phantom import Radiograph, render, scene
from tests.dicom_node.network import encoded, keep_instance
from tests.dicom_node.states import MINUTE
from tests.worker.rule_model import NAME
from worker.pipeline import Node

PATIENT = DemoPatient(patient_id="SECRET-ID", name="VERYSECRET^NAME")


@functools.cache
def radiograph(seed: int) -> Radiograph:
    """A small phantom; the smallest that the choice of images accepts."""
    return render(scene(seed), 256)


def phantom(seed: int, study_instance_uid: str, **arguments: Any) -> FileDataset:
    """One image of a study."""
    return to_dx(
        radiograph(seed), study_instance_uid=study_instance_uid, patient=PATIENT, **arguments
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study of a node."""

    node: Node
    uid: str = "2.25.77"

    def receive(self, seed: int = 1, *, quiet: timedelta = MINUTE, **arguments: Any) -> str:
        """Keep a phantom; its SOP Instance UID."""
        return self.keep(phantom(seed, self.uid, **arguments), quiet=quiet)

    def keep(
        self,
        image: FileDataset,
        *,
        quiet: timedelta = MINUTE,
        transfer_syntax: UID = ExplicitVRLittleEndian,
    ) -> str:
        """Keep any object; in a compressed transfer syntax its pixels are no such stream."""
        return self.keep_bytes(
            encoded(image, transfer_syntax),
            sop_instance_uid=image.SOPInstanceUID,
            sop_class_uid=image.SOPClassUID,
            transfer_syntax=transfer_syntax,
            quiet=quiet,
        )

    def keep_bytes(
        self,
        data_set: bytes,
        *,
        sop_instance_uid: str,
        sop_class_uid: str,
        transfer_syntax: UID = ExplicitVRLittleEndian,
        quiet: timedelta = MINUTE,
    ) -> str:
        """Keep a data set, whatever is in it."""
        kept = keep_instance(
            self.node.storage,
            study_instance_uid=self.uid,
            sop_instance_uid=sop_instance_uid,
            sop_class_uid=sop_class_uid,
            transfer_syntax_uid=transfer_syntax,
            data_set=data_set,
        )
        stored = StoredInstance(
            study_instance_uid=self.uid,
            series_instance_uid=f"{self.uid}.1",
            sop_instance_uid=sop_instance_uid,
            sop_class_uid=sop_class_uid,
            transfer_syntax_uid=transfer_syntax,
            path=kept.path,
            sha256=kept.sha256,
            size=kept.size,
            calling_ae_title="MODALITY",
            address="127.0.0.1",
            patient_key="patient",
        )
        with self.node.database.transaction() as connection:
            arrival = studies.Arrival(stored=stored, quiet=quiet, ready=timedelta(0))
            studies.register(connection, [arrival])
        return sop_instance_uid

    def queue(self) -> int:
        """What the node's tick does; the id of the study's latest job."""
        with self.node.database.transaction() as connection:
            studies.settle(connection, [NAME])
            return max(one.id for one in jobs.of_study(connection, self.uid))

    def again(self) -> None:
        """A person asks for the study again."""
        with self.node.database.transaction() as connection:
            assert jobs.requeue_ended(connection, study_instance_uid=self.uid)

    @property
    def account(self) -> Account:
        """Everything the node knows of it."""
        with self.node.database.transaction() as connection:
            return account.of(connection, self.uid)

    @property
    def job(self) -> Job:
        """Its latest job."""
        return self.account.jobs[-1]
