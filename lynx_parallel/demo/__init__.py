"""The offline demo: a tiny random checkpoint, two faces, their made-up embeddings."""
