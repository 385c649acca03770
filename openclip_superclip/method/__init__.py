"""The method: the class loss, the head, the model that carries it, and the statistics of the
words."""
