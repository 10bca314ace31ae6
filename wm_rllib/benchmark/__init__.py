"""Benchmarks: contenders, environments and seeds under one measure, raw results kept as JSON, and a report from them.

`contenders` are plug-ins: each yields a `Trainer`. `measuring` trains it and evaluates it at a fixed interval of real
steps, `running` does so for each job in a process of its own with a time limit, `store` keeps what was measured, and
`aggregation`, `tables`, `plot` and `report` read nothing but that.
"""
