"""What kind of space the vectors lie in."""
