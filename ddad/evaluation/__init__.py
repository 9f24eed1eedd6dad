"""Measuring how well scores separate defective from good images."""
