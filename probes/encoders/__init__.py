"""Encoders: found, described, checked, loaded, and looked at while they run."""
