"""Stanford's CS330: its data, pre-trained models, learners, models to use, and systems."""
