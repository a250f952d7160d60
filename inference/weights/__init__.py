"""Published weight files -> one prepared folder -> networks (docs/decisions/prepared-weights.md).

::

    files      published tensors, read safely and one at a time
    recipe     what a prepared model is made of; llava_rad and cxr_llava: theirs
    pieces     the tokeniser, looked at before it is copied
    nf4        four bits a weight, by bitsandbytes
    prepare    recipe -> prepared folder
    artefact   the prepared folder: one safetensors file, a manifest, copied files
    load       prepared folder -> networks; never quantises, never asks a network
"""

import os

# Nothing here may reach a hub (bitsandbytes looks for a CPU kernel there at import); must be set
# before the first import of huggingface_hub, which reads it once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
