"""The radiologist's final report: read, matched, kept, and compared with our draft."""
