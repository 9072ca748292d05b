"""Accuracy of real models: the same tasks by exact attention and by methods that look at fewer keys."""
