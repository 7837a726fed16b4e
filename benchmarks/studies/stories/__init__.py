"""Stories: several images of the same subjects, and how well these stay themselves."""
