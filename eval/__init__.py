"""Evaluation: the grid, what extractors see of it, and one file a metric. A new metric is one file and one line in
`eval.table.METRICS`.
"""
