"""Seeds for the many generators of one run, derived from its one seed."""

from __future__ import annotations

import hashlib
import json


def derive_seed(seed: int, *keys: int | str) -> int:
    """A seed in [0, 2^63) for the purpose named by `keys`, e.g. derive_seed(0, "noise", update).

    Numbers drawn by position instead of from one long stream need no generator state in a checkpoint.
    """
    digest = hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
