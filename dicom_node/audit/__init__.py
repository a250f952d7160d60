"""Audit messages (PS3.15 A.5): what passed between us and others, for the site's collector.

``messages`` says what a message of each kind holds and ``schema`` writes it as XML; ``auditor`` is
what the rest of the node tells; ``spool`` keeps messages until ``forwarder`` has got them to the
collector by ``syslog``. docs/decisions/audit.md says what of a patient is in them, and why.
"""
