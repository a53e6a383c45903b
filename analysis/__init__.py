"""Pure measurement: arrays in; numbers, tables and pictures out. Nothing here knows a model or a dataset."""
