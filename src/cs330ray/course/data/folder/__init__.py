"""A folder of one's own images: found, split into parts, decoded, and packed like every other dataset."""
