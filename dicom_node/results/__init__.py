"""Result objects: a stored record becomes the data set that goes back to the PACS.

Everything here is a pure function of the record, so the same record gives the same bytes.
"""
