"""Stories: several pictures of the same subjects, and how well these stay themselves."""
