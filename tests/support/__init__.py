"""What several test modules share."""

from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden"
WORDS = ["cat", "dog", "red", "blue", "tree", "house", "car", "ship", "sun", "moon", "fish", "bird"]
