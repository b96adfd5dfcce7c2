"""Gates against slower code that need no GPU and no quiet machine: counts, instructions, paired ratios."""
