"""Comparing models by accelerator-hours: measured runs in, laws with intervals, crossings and a report out."""
