"""Bundles: what is shipped, what it says of itself, and the proof that both agree."""
