"""Published weights that ship inside packages: our results beside their own libraries', and after growth."""
