"""A pipeline's verdict as one graph, for machines without PyTorch."""
