"""Stories: several images of the same subjects, made with isolation and reposition attention."""
