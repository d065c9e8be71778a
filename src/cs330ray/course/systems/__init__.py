"""The systems as trainables, one a module; and what several of them share."""
