"""The recommender's mathematics: how it learns from ratings, and how it is evaluated on others."""
