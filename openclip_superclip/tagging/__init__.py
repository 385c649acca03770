"""The class head as a tagger: the words of a picture, and where each is seen."""
