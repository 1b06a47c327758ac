"""Views: from (sample, seed) to pixels, and the proof that they come out the same again."""
