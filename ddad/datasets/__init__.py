"""Data sets in the layout that training and evaluation read."""
