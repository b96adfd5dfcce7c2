"""Books to file lists: filters, duplicates, splits; and sets of other kinds of text to test on."""
