"""How fast the parts are on your machine, as ratios to plain alternatives; and what the losses are worth.

The command line enters by `suites`; `contest` and `truncation` are programs of their own, which make the tables of
docs/losses.md and docs/results.md.

- `suites`: the suites by name, each as tables and as JSON
- `losses`, `views`, `store`, `scale`, `dump`, `train`: one suite each, by `measure`
- `sizes`, `speeds`, `memory`: the parts of `store`, which `scale` and `train` use too
- `compare`: two ways of doing one thing, timed in interleaved rounds
- `table`: how rows of figures are written
- `fixtures`, `synthetic`: caches of made-up teacher logits, and these logits
- `workload`: JPEG pictures, and a teacher that costs next to nothing
- `baselines`: other ways to keep a teacher's answers: LMDB, HDF5, Parquet, plain files
- `divergence`: how far what a record keeps is from the teacher's distribution
- `plot`: `scale` as a picture
- `contest`: losses under one budget, on digits and letters; `glyphs`: letters drawn
- `truncation`: how far k < C moves a loss
"""
