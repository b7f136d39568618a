"""Ray Data: sources of HQ pictures -> a dataset of dual-stage degraded pairs.

Two passes. The first hashes every file and checks its header (ingest); the driver then plans which rows each shard
holds, from the pictures' hashes alone (plan). The second makes one shard a task (shards, rows): encoded bytes never
travel between tasks, and a shard is the unit of resuming. The manifest comes last (build). What becomes of a dataset
later is in derive: regenerate, extend, remove. What MLflow keeps of a synthesis is in record.
"""
