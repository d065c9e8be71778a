"""What the few-shot learners share: the net that embeds images, and tasks of labelled images."""
