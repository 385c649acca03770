"""Reports on finished runs: their scores, compared by method and batch size with the paper's."""
