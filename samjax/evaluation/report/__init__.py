"""What an evaluation shows: an HTML file, figures of scores, and masks over images."""
