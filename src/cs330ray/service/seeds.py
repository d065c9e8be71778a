"""Seeds, drawn by hashing what they are for."""

import hashlib

SEED_BITS = 31


def trial_seed(study_seed: int, number: int) -> int:
    """The training seed of draw `number`, the same in every cell: common random numbers."""
    return hashed(study_seed, number)


def fresh_seed(study_seed: int, index: int) -> int:
    """Seed number `index` of confirmation, the same for every candidate of every cell."""
    return hashed("confirm", study_seed, index)


def hashed(*parts: object) -> int:
    """A seed that is a pure function of `parts`."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - SEED_BITS)
