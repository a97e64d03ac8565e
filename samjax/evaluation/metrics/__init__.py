"""Scores of the evaluation: boundaries, average precision and recall, means and correlations."""
