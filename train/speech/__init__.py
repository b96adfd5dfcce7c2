"""Speech: audio to discrete units and back, as data and measures for the one language model of the trainer."""
