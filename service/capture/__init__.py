"""A bounded sample of the images that were judged, kept on disk as they came, with their verdicts."""
