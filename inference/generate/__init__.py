"""Greedy decoding of many reports at once: embeddings in, ids out; knows nothing of text or images.

    report.py   what:  one report on its way, its limits and its times
    slots.py    when:  which report has which slot, and what a pass feeds
    passes.py   how:   one pass over the slots at few fixed shapes; CUDA graphs
    ngrams.py   drafts of next tokens, which the model checks
    device.py   the one thread that runs the device
    engine.py   all of it for callers in other threads

Why it is built so: docs/decisions/slot-engine.md.
"""

from inference.generate.device import device_errors
from inference.generate.engine import Engine
from inference.generate.report import Generation, Limits

__all__ = ["Engine", "Generation", "Limits", "device_errors"]
