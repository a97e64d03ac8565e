"""Formats of data sets on disk, each read as an index of images with masks."""
