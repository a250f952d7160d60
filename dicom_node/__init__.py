"""The DICOM side of the node: receive, keep, queue, send, search. It never imports torch."""

__version__ = "0.1.0"
