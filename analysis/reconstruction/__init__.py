"""Getting the text back from one vector."""
