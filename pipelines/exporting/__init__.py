"""Token datasets for language models: rows as sequences of ids, in files of training frameworks or as a stream."""
