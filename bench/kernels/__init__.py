"""One module per kernel room; each declares cases(device, quick)."""
