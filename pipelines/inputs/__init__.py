"""What a SOURCE holds, and how its audio and texts are read: folders, manifests, tar shards, Parquet; whole or cut."""
