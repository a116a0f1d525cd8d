"""Tasks: texts and labels, their split into train, dev and test, duplicates and controls."""
