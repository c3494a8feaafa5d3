"""Nearest neighbours over the mapped embeddings: which records are most alike to a vector, under any filter.

A search reads the block where it lies, in chunks: BLAS finds the candidates in float32 within a proven bound, and
float64 decides among them. So a row has one score, whatever the batch, filter, chunk or number of threads.

`metrics` says what a score is, and how wrong BLAS can be about it; `chunks` which rows are read, and in what pieces;
`best` keeps the k best; `scan` puts these together for a file; `neighbours` searches a selection, `streamed` a source.

A search with a recall scores fewer rows: `distances` says which are near by their signs, `sketched` how many are
enough, `measuring` what a build finds about that; `comparing` what queries of a user's own do.
"""
