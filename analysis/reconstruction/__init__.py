"""What of a text can be written down again from one vector."""
