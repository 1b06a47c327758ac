"""Format: what a cache is. Facts only, without torch: specs, identity, schema, how numbers are quantized."""
