"""A person's own ratings: found as they were published or exported, read row by row, and packed once."""
