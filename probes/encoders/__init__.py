"""Find, describe, load and check encoders, and read their layers while they run."""
