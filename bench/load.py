"""Load prepared weights on the CPU: ``python -m bench.load FOLDER`` prints seconds and RSS."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import psutil

from dicom_node.cli import logs
from inference import models
from inference.models import Options


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="written by `dicom-node models prepare`")
    parser.add_argument("--model", default="llava-rad")
    arguments = parser.parse_args()
    logs.quiet_libraries()
    models.find(arguments.model)  # imports torch, which is not what is measured
    began = time.monotonic()
    model = models.load(arguments.model, path=arguments.folder, device="cpu", options=Options())
    seconds = time.monotonic() - began
    held = psutil.Process().memory_info().rss
    print(json.dumps({"seconds": seconds, "rss": held, "algorithm": model.algorithm.version}))


if __name__ == "__main__":
    main()
