"""Masks: run lengths, packed bits, boxes and NMS, IoU, regions, resizing."""
