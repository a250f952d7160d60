"""The DICOM Conformance Statement (PS3.2, template of Annex N), made from code and configuration.

Nothing is typed twice: syntaxes, bounds, statuses and defaults come from where they are used, and
what our objects hold is read off encoded ones. Equal settings give equal text, on every machine.
"""

from __future__ import annotations

from dicom_node import __version__
from dicom_node.config import Settings
from dicom_node.conformance import annexes, services, site, web
from dicom_node.conformance.created import Classes, created
from dicom_node.conformance.markdown import bullets, section
from dicom_node.conformance.samples import samples


def statement(settings: Settings, classes: Classes) -> str:
    """Return the statement of a node with these settings, as Markdown.

    Parameters
    ----------
    settings
        The site's, or the defaults.
    classes
        Which SOP classes a kind of result can be had in, the configured one first.
    """
    shown = samples(settings)
    objects = created(shown, settings.results, classes)
    parts = [
        section(1, f"DICOM Conformance Statement of dicom-node {__version__}", _NOTE),
        section(2, "1 Overview", _OVERVIEW, services.overview(objects)),
        section(2, "2 Introduction", _INTRODUCTION),
        _MODEL,
        services.specification(settings, objects),
        web.services(),
        site.communication(),
        site.configuration(settings),
        section(2, "7 Media interchange", "None: no media storage application profile."),
        section(2, "8 Character sets", bullets(_CHARACTER_SETS)),
        site.security(settings),
        annexes.annexes(objects, settings.results, shown),
    ]
    return "\n\n".join(parts) + "\n"


_NOTE = (
    "Made by `dicom-node conformance` from the program and its configuration; do not edit. It "
    "follows the template of PS3.2, Annex N."
)
_OVERVIEW = (
    "dicom-node is a plug-in service of a PACS. It receives studies by C-STORE, reads frontal "
    "chest X-rays with a model, and sends **drafts** of reports back to the PACS: unverified, "
    "preliminary, not for diagnosis, and marked so in every object. It is no archive and answers "
    "no queries."
)
_INTRODUCTION = (
    "This statement is for those who connect the node to other systems and know DICOM. It says "
    "which services are offered and on what terms; it does not replace a test with the other "
    "system. Terms are those of the Standard."
)
_MODEL = "\n\n".join(
    [
        section(2, "3 Implementation model"),
        section(
            3,
            "3.1 Application data flow",
            "```text\n"
            "PACS, modality --C-STORE, C-ECHO, N-ACTION--> dicom-node\n"
            "dicom-node --C-STORE--> PACS    drafts\n"
            "dicom-node --C-FIND---> PACS    is the draft there? what is missing here?\n"
            "dicom-node --C-MOVE, C-GET--> PACS    missed and earlier studies\n"
            "dicom-node --N-ACTION-> PACS    commit to the draft; reports come either way\n"
            "dicom-node --C-ECHO---> PACS    does it answer?\n"
            "dicom-node --STOW-RS--> PACS    drafts, to a DICOMweb server\n"
            "dicom-node --QIDO-RS--> PACS    is the draft there? does it answer?\n"
            "```",
        ),
        section(
            3,
            "3.2 Functional definition",
            "The one application entity, dicom-node, waits for associations of configured peers, "
            "stores what they send, and acknowledges an object when it is durable. When a study "
            "holds an image that can be read, or has been silent for `study.quiet_seconds`, it is "
            "read; the draft is stored as objects, which are sent to the peers that want them.",
        ),
        section(
            3,
            "3.3 Sequencing",
            "Store (any order, any number of associations), then read, then send, then prove. An "
            "image that arrives later and is a better one gives a new version, which names the "
            "object that it replaces.",
        ),
    ]
)
_CHARACTER_SETS = (
    "Received objects: any Specific Character Set; nothing is converted.",
    "Created objects: the image's Specific Character Set where it can write the draft, otherwise "
    "UTF-8 (ISO_IR 192), into which the copied text is converted then. An image without one gives "
    "an object without one where all text is in the default repertoire.",
    "Drafts are in English (en-US).",
)
