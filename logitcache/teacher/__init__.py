"""Teacher: what a teacher said of a view, as a distribution; from a cache, or live.

For `losses` and the wings above. A teacher answers for a batch of (sample, seed) pairs with a `SparseTeacher`, whose
`at(T)` is the distribution at temperature T.

sparse      `SparseTeacher` and `SoftTargets`: the k largest logits and three numbers for the tail, as a distribution
protocol    `Teacher`, what every kind of teacher can do
cached      `CachedTeacher`: answers looked up in a cache
live        `LiveTeacher`: the model itself, run on every batch; is a model the cache's teacher?
ensemble    several teachers averaged into one
spool       one seed of a cache, decoded into a packed file that all processes map
spool_file  the checksum of that file
"""
