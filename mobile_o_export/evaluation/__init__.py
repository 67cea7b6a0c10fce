"""Does a bundle still do the tasks: drawings judged by rules, answers by their words, next to PyTorch's."""
