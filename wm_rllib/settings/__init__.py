"""The settings that YAML files, `--set` and the fluent config share: table, types, ranges. Nothing here imports Ray."""
