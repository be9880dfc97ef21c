"""The report page of a pruned folder."""
