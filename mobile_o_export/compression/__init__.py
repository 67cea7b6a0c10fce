"""Weights in fewer bytes: what is stored, and how far it is from what it stands for."""
