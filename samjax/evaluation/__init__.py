"""The evaluation suite of the paper: clicks, edges, proposals and instances, and the pages about them."""
