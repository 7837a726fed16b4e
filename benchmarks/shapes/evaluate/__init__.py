"""Measure the embedded model and its judge: accuracy, word maps, agreement with truth and with readers."""
