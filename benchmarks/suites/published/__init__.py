"""Published prompt sets, read from files that the user has: their formats, and what each prompt is about."""
