"""``python -m dicom_node.cli`` is ``dicom-node``: how children are started, whatever PATH says."""

from dicom_node.cli import main

main()
