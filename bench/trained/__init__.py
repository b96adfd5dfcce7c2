"""Published weights that ship inside packages: our models' results beside their own libraries', before and after growth."""
