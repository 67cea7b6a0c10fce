"""The model's tasks over any set of runners: PyTorch's, or a bundle's."""
