"""How fast the parts are on your machine, against plain alternatives: ratios measured in one run."""
