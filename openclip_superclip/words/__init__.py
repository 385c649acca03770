"""The words that a class head finds in images."""
