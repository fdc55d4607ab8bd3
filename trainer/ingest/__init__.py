"""Making a data set of shards out of class folders or class tars: `plan` what goes where, `work` on one shard, and the
`job` around both. Nothing here imports torch."""
