"""Drawing of masks, clicks and boxes over images."""
