"""The model side: pixels in, findings out. It never learns that DICOM networking exists."""
