"""Data of one's own: read from files as people have them, each fault in one line, and packed once like the rest."""
