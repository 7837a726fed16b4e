"""Settings: validated classes, windows of the schedule, and the files that hold them."""
