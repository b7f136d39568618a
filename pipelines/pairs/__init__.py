"""The pair dataset: what a row is (schema), the manifest, verification, reading it for training, its card, differences.

DATASET/                   a folder, or a prefix on any fsspec filesystem
  manifest.json            written last: a dataset without it is unfinished
  rejects.parquet          source_uri, kind, reason
  README.md                its card
  shards/part-00000.parquet ...
  .receipts/               of finished shards: what synthesis continues from
"""
